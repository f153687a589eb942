"""A Keras model round a classifier: what users of Keras expect of it, besides the training itself."""

import inspect

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, folding
from keras_mart.methods import averaging, finite


class NetworkModel(keras.Model):
    """Calls, builds, compiles, checks and saves; a subclass gives `train_step` and `test_step`.

    Args:
        network: a Keras classifier that returns logits [batch, classes]; kept as `.network`.
        weight_average: decay of a moving average of the weights, `.averaged_network`; `None` for none.

    Raises:
        ValueError: a network that ends in a softmax, or one that cannot be copied; a decay outside (0, 1).
    """

    # Tells attacks, evaluation and export to work on `.network`.
    wraps_network = True

    def __init__(self, network, *, weight_average=None, **kwargs):
        checks.network(network)
        if weight_average is not None and not 0 < weight_average < 1:
            raise ValueError(f"`weight_average` must be a decay between 0 and 1. Received: {weight_average}")
        kwargs.setdefault("dtype", _policy(network))
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.weight_average = weight_average
        self.averaged_network = None if weight_average is None else averaging.copy_of(network)
        self.built = network.built and getattr(self.averaged_network, "built", True)

    @property
    def judged_network(self):
        """The network that is evaluated, attacked and exported: the averaged one where there is one."""
        return self.averaged_network or self.network

    def call(self, inputs, training=None):
        images = images_of(inputs)
        if training:
            logits = folding.training_view(self.network)(images)
        else:
            logits = self.judged_network(images, training=False)
        return ops.cast(logits, "float32")

    def build(self, input_shape):
        shape = input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape
        if self.averaged_network is not None and not self.averaged_network.built:
            with tf.init_scope():  # a graph may be being traced
                averaging.build(self.network, self.averaged_network, shape)
        elif not self.network.built:
            self.network.build(shape)
        self.built = True

    def compile(
        self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, *, jit_compile="auto", on_nan="stop",
        **kwargs,
    ):  # fmt: skip
        """Configures training. Arguments are those of `keras.Model.compile`, but for the loss, which the method owns.

        Args:
            optimizer: name or instance.
            metrics: metrics of the natural logits, as Keras takes them.
            jit_compile: `True` has XLA compile the attack and the gradient; "auto" does so on GPUs alone.
            on_nan: what becomes of a step whose loss or gradient is not finite. "stop" ends `fit` with an error that
                tells the step and the values of the loss's parts, before the weights change. "skip" prints them and
                goes on with weights, optimizer, statistics and margins as before the step, on all replicas; it keeps
                a copy of weights and optimizer during each step.

        Raises:
            ValueError: a loss was passed, or an unknown `on_nan`.
        """
        if loss is not None or loss_weights is not None:
            raise ValueError(
                f"`compile` takes no loss: {type(self).__name__} trains with its own (`training_loss`). "
                f"Received: loss={loss!r}, loss_weights={loss_weights!r}"
            )
        checks.one_of(on_nan, finite.ON_NAN, "on_nan")
        super().compile(optimizer, metrics=metrics, jit_compile=False, **kwargs)
        self.on_nan = on_nan
        self._jit_compile_argument = jit_compile
        self._xla = distribution.prefers_xla() if jit_compile == "auto" else bool(jit_compile)
        self._xla = self._xla and not self.run_eagerly
        if self.built:
            self._build_all()

    def _build_all(self, images=None):
        """Builds before any graph is traced: variables that come later escape what a step keeps or takes back."""
        with self.distribute_strategy.scope():
            if not self.built:
                self.build(np.shape(images))
            if self.compiled and self.optimizer is not None and not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)

    def get_compile_config(self):
        config = super().get_compile_config()
        return {**config, "jit_compile": self._jit_compile_argument, "on_nan": self.on_nan} if config else config

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
        # Several workers shuffle arrays alike, each for itself.
        distribution.share_seed(self.distribute_strategy)
        arguments["x"] = distribution.by_examples(x, self.distribute_strategy)
        arguments["validation_data"] = distribution.by_examples(validation, self.distribute_strategy)
        callbacks = arguments.get("callbacks")
        if isinstance(callbacks, keras.callbacks.CallbackList):
            counter = _EpochCounter()
            counter.set_model(self)
            callbacks.callbacks.insert(0, counter)
        else:
            arguments["callbacks"] = [_EpochCounter(), *keras.tree.flatten(callbacks or [])]
        try:
            return super().fit(**arguments)
        except tf.errors.InvalidArgumentError as error:
            if finite.told(error) is None:
                raise
            raise FloatingPointError(f"Loss and gradient must be finite. Received at {finite.told(error)}") from None

    def evaluate(self, x=None, y=None, *args, **kwargs):
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked its validation data
            x = distribution.by_examples(self._check(x, y), self.distribute_strategy)
        return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        self._check(x, y, training=True)
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        self._check(x, y)
        return super().test_on_batch(x, y, *args, **kwargs)

    def _check(self, x, y=None, training=False):
        """Raises ValueError where the first batch is no good; returns the x to go on with."""
        with self.distribute_strategy.scope():  # the first batch builds a network that is not built
            x, inputs, labels = checks.first_batch(x, y)
            checks.batch(self.network, images_of(inputs), labels)
        self._build_all(images_of(inputs))
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
        network = keras.saving.serialize_keras_object(self.network)
        return {"network": network, "weight_average": self.weight_average, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


class _EpochCounter(keras.callbacks.Callback):
    """Tells the model which epoch it is in, from 0."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.epoch.assign(epoch)


def images_of(inputs):
    """The images of inputs that may be (images, index)."""
    return inputs[0] if isinstance(inputs, (tuple, list)) else inputs


def _policy(network):
    """The network's dtype policy; that of its float16 layers where it has any, for the sake of loss scaling."""
    policies = [network.dtype_policy, *(layer.dtype_policy for layer in network.layers)]
    return next((policy for policy in policies if policy.compute_dtype == "float16"), network.dtype_policy)
