"""A Keras model round a classifier: what users of Keras expect of it, besides the training itself."""

import inspect

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, folding, memory
from keras_mart.attacks.base import Attack
from keras_mart.attacks.inference import compile_by_xla
from keras_mart.methods import averaging, finite, hyperparameter


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

    weight_average = hyperparameter.Hyperparameter("a decay between 0 and 1", lambda value: 0 < value < 1)

    def __init__(self, network, *, weight_average=None, **kwargs):
        checks.network(network)
        kwargs.setdefault("dtype", _policy(network))
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.weight_average = weight_average
        self.averaged_network = None if weight_average is None else averaging.copy_of(network)
        self.built = network.built

    @property
    def judged_network(self):
        """The network that is evaluated, attacked and exported: the averaged one where there is one."""
        return self.averaged_network or self.network

    def call(self, inputs, training=None):
        images, _ = checks.indexed(inputs)
        if training:
            logits = folding.training_view(self.network)(images)
        else:
            logits = self.judged_network(images, training=False)
        return ops.cast(logits, "float32")

    def build(self, input_shape):
        shape = input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape
        with tf.init_scope():  # a graph may be being traced
            if not self.network.built:
                if None in shape[1:]:
                    self.network.build(shape)
                else:  # all that builds a subclassed network
                    self.network(ops.zeros((1, *shape[1:])), training=False)
            if self.weight_average is not None and self.averaged_network is None:
                self.averaged_network = averaging.copy_of(self.network)
        self.built = True

    def compile(
        self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, *, jit_compile="auto", on_nan="stop",
        **kwargs,
    ):  # fmt: skip
        """Configures training. Arguments are those of `keras.Model.compile`, but for the loss, which the method owns.

        Args:
            optimizer: name or instance.
            metrics: metrics of the natural logits, as Keras takes them.
            jit_compile: `True` has XLA compile the attack and the gradient, and attacks on the model and its evaluation
                too; `False` has it compile nothing; "auto" does so only on GPUs.
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

    def _build_all(self, shape=None):
        """Builds before any graph is traced: variables that come later escape what a step keeps or takes back."""
        with self.distribute_strategy.scope():
            if not self.built:
                self.build(shape)
            if self.compiled:
                compile_by_xla(self.judged_network, self._jit_compile_argument)
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
            several = arguments.get("epochs", 1) > arguments.get("initial_epoch", 0) + 1
            self._check(validation, readable_again=several)
        # Several workers shuffle arrays alike, each for itself.
        distribution.share_seed(self.distribute_strategy)
        arguments["x"] = distribution.prepared(x, self.distribute_strategy)
        arguments["validation_data"] = distribution.prepared(validation, self.distribute_strategy)
        callbacks = arguments.get("callbacks")
        if isinstance(callbacks, keras.callbacks.CallbackList):
            counter = _EpochCounter()
            counter.set_model(self)
            callbacks.callbacks.insert(0, counter)
        else:
            arguments["callbacks"] = [_EpochCounter(), *keras.tree.flatten(callbacks or [])]
        with finite.explained():
            return super().fit(**arguments)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked its validation data
            x = distribution.prepared(self._check(x, y), self.distribute_strategy)
        with finite.explained():
            return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        self._check(x, y, training=True)
        with finite.explained():
            return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        self._check(x, y)
        with finite.explained():
            return super().test_on_batch(x, y, *args, **kwargs)

    def _check(self, x, y=None, training=False, readable_again=False):
        """Raises ValueError where the first batch is no good; returns the x to go on with.

        The values of a `tf.data.Dataset` are looked at only if it is `readable_again`; each step looks at its own.
        """
        with self.distribute_strategy.scope():  # the first batch builds a network that is not built
            x, first = checks.first_batch(x, y, readable_again)
            images, index, labels, _ = checks.unpacked(first)
            checks.batch(self.network, images, labels)
        self._image_shape = tuple(images.shape if isinstance(images, tf.TypeSpec) else np.shape(images))
        self._build_all(self._image_shape)
        if isinstance(self.attack, Attack):
            self.attack.check_images(self._image_shape)
        if training:
            self.check_training_inputs(images if index is None else (images, index))
        return x

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Private: to build the metrics under a strategy, Keras reads a batch for its shapes, averages the replicas'
        # parts, which fails where they differ in size (keras-team/keras issue 20585), and reads the data anew.
        images = keras.KerasTensor((None, *self._image_shape[1:]))
        super()._maybe_symbolic_build(data_batch=(images, keras.KerasTensor((None,), "int32")))

    def _compiled(self, function):
        """The function compiled by XLA where `jit_compile` says so.

        Inside each replica, round attack and gradient alone: XLA takes neither the optimizer's update across
        replicas nor the metrics.
        """
        return tf.function(function, jit_compile=True, autograph=False) if self._xla else function

    def make_train_function(self, force=False):
        super().make_train_function(force or self._changed("training"))

    def make_test_function(self, force=False):
        super().make_test_function(force or self._changed("evaluation"))

    def make_predict_function(self, force=False):
        super().make_predict_function(force or self._changed("prediction"))

    def _changed(self, kind):
        """Whether the network, the method or its attack are others than when this was called last.

        What counts is the attribute of each constructor argument, but for hyperparameters, which traces read as they
        are.
        """
        if self.averaged_network is not None:
            averaging.adapt(self.network, self.averaged_network)
        known, key = memory.of(self.network), (kind, id(self))
        constructors = (each.__init__ for each in type(self).__mro__ if issubclass(each, NetworkModel))
        names = {name for each in constructors for name in inspect.signature(each).parameters}
        names -= {"self", "network", *hyperparameter.names(self)}
        now = {name: getattr(self, name, None) for name in ("on_nan", *names)} | {"folding": folding.enabled()}
        before, known[key] = known.get(key), now
        return before is None or not all(_same(before[name], value) for name, value in now.items())

    def predict_step(self, data):
        return self(checks.unpacked(data)[0], training=False)

    def save(self, filepath, *args, **kwargs):
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"`filepath` must end in .keras: an h5 file of a wrapped model cannot be loaded. Received: {filepath}"
            )
        super().save(filepath, *args, **kwargs)

    def export(self, filepath, *args, **kwargs):
        """Exports the network that is judged, as `keras.Model.export`; `keras_mart.export` adds signatures."""
        self.judged_network.export(filepath, *args, **kwargs)

    def get_config(self):
        network = keras.saving.serialize_keras_object(self.network)
        return {"network": network, "weight_average": self.weight_average, "name": self.name}

    @classmethod
    def from_config(cls, config):
        with averaging.of_fresh_networks():
            return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


class _EpochCounter(keras.callbacks.Callback):
    """Tells the model which epoch it is in, from 0."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.epoch.assign(epoch)


def _same(one, other):
    """Whether two settings are one: by value where that is an answer, as that of arrays is not."""
    return one is other or (type(one) is type(other) and type(equal := one == other) is bool and equal)


def _policy(network):
    """The network's dtype policy; that of its float16 layers where it has any, for the sake of loss scaling."""
    policies = [network.dtype_policy, *(layer.dtype_policy for layer in network.layers)]
    return next((policy for policy in policies if policy.compute_dtype == "float16"), network.dtype_policy)
