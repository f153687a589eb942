"""A Keras model round a classifier: what users of Keras expect of it, besides the training itself."""

import inspect

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, folding


class NetworkModel(keras.Model):
    """Calls, builds, compiles, checks and saves; a subclass gives `train_step` and `test_step`.

    Args:
        network: a Keras classifier that returns logits [batch, classes]; kept as `.network`.

    Raises:
        ValueError: a network that ends in a softmax.
    """

    # Tells attacks, evaluation and export to work on `.network`.
    wraps_network = True

    def __init__(self, network, **kwargs):
        checks.network(network)
        kwargs.setdefault("dtype", _policy(network))
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.built = network.built

    def call(self, inputs, training=None):
        images = images_of(inputs)
        logits = folding.training_view(self.network)(images) if training else self.network(images, training=False)
        return ops.cast(logits, "float32")

    def build(self, input_shape):
        if not self.network.built:
            self.network.build(input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape)
        self.built = True

    def compile(self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, *, jit_compile="auto", **kwargs):
        """Configures training. Arguments are those of `keras.Model.compile`, but for the loss, which the method owns.

        Args:
            optimizer: name or instance.
            metrics: metrics of the natural logits, as Keras takes them.
            jit_compile: `True` has XLA compile the attack and the gradient; "auto" does so on GPUs alone.

        Raises:
            ValueError: a loss was passed.
        """
        if loss is not None or loss_weights is not None:
            raise ValueError(
                f"`compile` takes no loss: {type(self).__name__} trains with its own (`training_loss`). "
                f"Received: loss={loss!r}, loss_weights={loss_weights!r}"
            )
        super().compile(optimizer, metrics=metrics, jit_compile=False, **kwargs)
        self._jit_compile_argument = jit_compile
        self._xla = distribution.prefers_xla() if jit_compile == "auto" else bool(jit_compile)
        self._xla = self._xla and not self.run_eagerly
        if self.network.built and self.optimizer is not None:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def get_compile_config(self):
        config = super().get_compile_config()
        return {**config, "jit_compile": self._jit_compile_argument} if config else config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def check_training_inputs(self, inputs):
        """Raises ValueError where the first inputs lack what the method needs besides images."""

    def fit(self, x=None, y=None, *args, **kwargs):
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        x = self._check(x, y, training=True)
        validation = arguments.get("validation_data")
        if isinstance(validation, (tuple, list)):
            self._check(*validation[:2])
        elif validation is not None and not hasattr(validation, "__next__"):  # a generator cannot be looked into
            self._check(validation)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked its validation data
            x = self._check(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def _check(self, x, y=None, training=False):
        """Raises ValueError where the first batch is no good; returns the x to go on with."""
        with self.distribute_strategy.scope():  # the first batch builds a network that is not built
            x, inputs, labels = checks.first_batch(x, y)
            checks.batch(self.network, images_of(inputs), labels)
        if training:
            self.check_training_inputs(inputs)
        return x

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Private: under a strategy Keras averages the replicas' parts of the first batch to learn its shapes, which
        # fails where the parts differ in size (keras-team/keras issue 20585). The first part has the shapes too.
        if iterator is not None and self._distribute_strategy is not None:
            _, _, batches = next(iter(iterator))
            parts = self.distribute_strategy.experimental_local_results
            data_batch = keras.tree.map_structure(lambda value: parts(value)[0], next(batches))
        super()._maybe_symbolic_build(None if data_batch is not None else iterator, data_batch)

    def _compiled(self, function):
        """The function compiled by XLA where `jit_compile` says so.

        Inside each replica, round attack and gradient alone: XLA takes neither the optimizer's update across
        replicas nor the metrics.
        """
        return tf.function(function, jit_compile=True, autograph=False) if self._xla else function

    def get_config(self):
        return {"network": keras.saving.serialize_keras_object(self.network), "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def images_of(inputs):
    """The images of inputs that may be (images, index)."""
    return inputs[0] if isinstance(inputs, (tuple, list)) else inputs


def _policy(network):
    """The network's dtype policy; that of its float16 layers where it has any, for the sake of loss scaling."""
    policies = [network.dtype_policy, *(layer.dtype_policy for layer in network.layers)]
    return next((policy for policy in policies if policy.compute_dtype == "float16"), network.dtype_policy)
