"""The frame of every method: a Keras model that attacks its network and trains on what the attack found.

A method is what its attack climbs (`attack_objective`) plus what its training descends (`training_loss`).
The step itself is written once, here.
"""

import inspect
import random
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, losses
from keras_mart.attacks.inference import inference

# Distinguish the random numbers of training from those of validation.
TRAINING, TESTING = 0, 1


class Outputs(NamedTuple):
    """What a training loss sees.

    natural: [batch, classes] float32 logits on x.
    adversarial: [batch, classes] float32 logits on x'; `None` where the method has no adversary.
    epsilon: the size of the ball used, scalar or [batch].
    """

    natural: object
    adversarial: object
    epsilon: object


class Batch(NamedTuple):
    """One replica's part of a batch; `real` is 1 for its examples and 0 for filling."""

    images: object
    labels: object
    weights: object
    index: object
    real: object


class AdversarialModel(keras.Model):
    """A classifier trained against an adversary, with `compile`, `fit`, `evaluate`, `predict` and `save` as ever.

    Calling it calls the wrapped network and returns float32 logits. The metrics are `loss`, `natural_accuracy`
    and `adversarial_accuracy` (unweighted); `metrics=` of `compile` apply to the natural logits. In validation
    the attack climbs its own loss at its own epsilon, so that `val_adversarial_accuracy` compares across methods.

    Args:
        network: a Keras classifier that returns logits [batch, classes]; kept as `.network`.
        attack: an attack with `maximise`, such as `keras_mart.PGD`.
        seed: integer from which all random starts derive; drawn from Python's `random` by default
            (so `keras.utils.set_random_seed` fixes it).

    Raises:
        ValueError: a network that ends in a softmax, or an attack that cannot climb a method's objective.
    """

    # Whether BatchNorm and the gradient see the natural batch; otherwise it is forwarded for its accuracy alone.
    trains_on_natural = True
    # Whether a batch also runs through the adversary.
    has_adversary = True
    # Whether training data must be ((image, index), label[, weight]).
    needs_index = False

    def __init__(self, network, attack=None, *, seed=None, **kwargs):
        checks.network(network)
        if self.has_adversary and not hasattr(attack, "maximise"):
            raise ValueError(
                f"`attack` must be able to climb the objective of {type(self).__name__}, as keras_mart.PGD does. "
                f"Received: attack={attack!r}"
            )
        seed = random.getrandbits(31) if seed is None else seed
        if not 0 <= seed < 2**31:
            raise ValueError(f"`seed` must be an integer in [0, 2**31). Received: seed={seed}")
        kwargs.setdefault("dtype", _policy(network))
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.attack = attack
        self.seed = seed
        self.step = self.add_weight(
            shape=(), dtype="int32", trainable=False, name="step", initializer="zeros",
            aggregation="only_first_replica",
        )  # fmt: skip
        self.natural_accuracy = keras.metrics.SparseCategoricalAccuracy("natural_accuracy")
        if self.has_adversary:
            self.adversarial_accuracy = keras.metrics.SparseCategoricalAccuracy("adversarial_accuracy")
        self.built = network.built

    # The hooks of a method.

    def attack_objective(self, x, labels):
        """What the attack climbs in training: maps [batch, ...] images to [batch]. Cross-entropy by default."""
        logits = self.inference()
        return lambda candidates: losses.cross_entropy(labels, logits(candidates))

    def training_loss(self, labels, outputs):
        """What training descends: [batch] from [batch] labels and `Outputs`."""
        raise NotImplementedError

    def perturb(self, x, labels, seed, index=None):
        """The images trained on, [batch, ...], and the size of the ball they lie in, scalar or [batch]."""
        objective = self.attack_objective(x, labels)
        return self.attack.maximise(objective, x, seed=seed), self.attack.threat.epsilon

    def remember(self, index, epsilon, real):
        """Keeps what a method learns of single examples; `real` is 0 for those that are filling."""

    def check_training_inputs(self, inputs):
        """Raises ValueError where the first inputs lack what the method needs besides images."""

    # What the hooks build on.

    def inference(self):
        """The network as attacks see it: maps images to float32 logits, in evaluation mode."""
        return inference(self.network)

    def call(self, inputs, training=None):
        return ops.cast(self.network(_images(inputs), training=training), "float32")

    def build(self, input_shape):
        if not self.network.built:
            self.network.build(input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape)
        self.built = True

    # The steps.

    def train_step(self, data):
        batch = self._unpack(data)
        seed = self._seed(TRAINING, self.step)
        adversarial, epsilon = None, 0.0
        if self.has_adversary:
            adversarial, epsilon = self._compiled(self.perturb)(batch.images, batch.labels, seed, batch.index)
            if batch.index is not None:
                self.remember(batch.index, epsilon, batch.real)
        examples = distribution.total(tf.reduce_sum(batch.real))
        gradients, values, outputs = self._compiled(self._differentiate)(batch, adversarial, epsilon, examples)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.step.assign(self.step + 1)
        return self._measure(batch, values, outputs)

    def test_step(self, data):
        batch = self._unpack(data)
        # The examples counted so far in this evaluation number its batches: each has its own random start.
        seed = self._seed(TESTING, ops.cast(self.natural_accuracy.count, "int32"))
        values, outputs = self._compiled(self._judge)(batch, seed)
        return self._measure(batch, values, outputs)

    def _differentiate(self, batch, adversarial, epsilon, examples):
        if not self.trains_on_natural:
            natural = ops.stop_gradient(self(batch.images, training=False))
        with tf.GradientTape() as tape:
            if self.trains_on_natural:
                natural = self(batch.images, training=True)
            if adversarial is not None:
                adversarial = self(adversarial, training=True)
            outputs = Outputs(natural, adversarial, epsilon)
            values = self._values(batch, outputs)
            loss = self.optimizer.scale_loss(tf.reduce_sum(values * batch.real) / examples)
        return tape.gradient(loss, self.trainable_variables), values, outputs

    def _judge(self, batch, seed):
        adversarial, epsilon = None, 0.0
        if self.has_adversary:
            images = self.attack.perturb(self.inference(), batch.images, batch.labels, seed)
            adversarial, epsilon = self(images, training=False), self.attack.threat.epsilon
        outputs = Outputs(self(batch.images, training=False), adversarial, epsilon)
        return self._values(batch, outputs), outputs

    def _values(self, batch, outputs):
        """[batch] the weighted losses, each with the regularisation losses of the network added.

        Their sum over all replicas, divided by the number of examples of all replicas, is the loss.
        """
        values = batch.weights * self.training_loss(batch.labels, outputs)
        return values + sum(ops.cast(loss, "float32") for loss in self.losses)

    def _measure(self, batch, values, outputs):
        self._loss_tracker.update_state(values, batch.real)  # private: Keras's own `loss`, made by `compile`
        self.natural_accuracy.update_state(batch.labels, outputs.natural, batch.real)
        if outputs.adversarial is not None:
            self.adversarial_accuracy.update_state(batch.labels, outputs.adversarial, batch.real)
        examples = tf.cast(tf.reduce_sum(batch.real), "int32")  # metrics of `compile` must not see the filling
        return self.compute_metrics(
            batch.images[:examples], batch.labels[:examples], outputs.natural[:examples], batch.weights[:examples]
        )

    def _unpack(self, data):
        x, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        index = ops.cast(x[1], "int32") if isinstance(x, (tuple, list)) and len(x) > 1 else None
        images = ops.cast(_images(x), "float32")
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        weights = ops.ones_like(labels, "float32") if weights is None else ops.cast(weights, "float32")
        tensors = (images, labels, ops.reshape(weights, (-1,)), index)
        return Batch(*_fill(tensors))

    def _seed(self, purpose, number):
        seed = tf.random.fold_in(tf.constant([self.seed, purpose], "int32"), ops.convert_to_tensor(number))
        return tf.random.fold_in(seed, distribution.replica_id())

    def _compiled(self, function):
        """The function compiled by XLA where `jit_compile` says so.

        Inside each replica, round attack and gradient alone: XLA takes neither the optimizer's update across
        replicas nor the metrics.
        """
        return tf.function(function, jit_compile=True, autograph=False) if self._xla else function

    # Keras's conveniences.

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

    def fit(self, x=None, y=None, *args, **kwargs):
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        x = self._check(x, y, training=True)
        validation = arguments.get("validation_data")
        if validation is not None:
            self._check(*validation[:2]) if isinstance(validation, (tuple, list)) else self._check(validation)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked its validation data
            x = self._check(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def _check(self, x, y=None, training=False):
        """Raises ValueError where the first batch is no good; returns the x to go on with."""
        with self.distribute_strategy.scope():  # the first batch builds a network that is not built
            x, inputs, labels = checks.first_batch(x, y)
            checks.batch(self.network, _images(inputs), labels)
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

    def get_config(self):
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "attack": keras.saving.serialize_keras_object(self.attack),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        names = [name for name in ("network", "attack") if name in config]
        return cls(**{**config, **{name: keras.saving.deserialize_keras_object(config[name]) for name in names}})


class WeightedModel(AdversarialModel):
    """A method with a second term of weight `beta`; `None` takes the method's own `default_beta`."""

    default_beta = None

    def __init__(self, network, attack=None, *, beta=None, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.beta = self.default_beta if beta is None else beta
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"`beta` must be finite and not negative. Received: beta={beta}")

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


class PairingModel(WeightedModel):
    """A method that pairs outputs, in the MART paper's form ("mart") or in its own paper's ("original")."""

    # This package's choice: the papers' weights belong to other data sets.
    default_beta = 0.5

    def __init__(self, network, attack=None, *, form="mart", **kwargs):
        super().__init__(network, attack, **kwargs)
        checks.one_of(form, ("mart", "original"), "form")
        self.form = form

    def get_config(self):
        return {**super().get_config(), "form": self.form}


def _images(inputs):
    return inputs[0] if isinstance(inputs, (tuple, list)) else inputs


def _fill(tensors):
    present = [tensor for tensor in tensors if tensor is not None]
    filled, real = distribution.fill_if_empty(present)
    return *filled, *[None] * (len(tensors) - len(present)), real


def _policy(network):
    """The network's dtype policy; that of its float16 layers where it has any, for the sake of loss scaling."""
    policies = [network.dtype_policy, *(layer.dtype_policy for layer in network.layers)]
    return next((policy for policy in policies if policy.compute_dtype == "float16"), network.dtype_policy)
