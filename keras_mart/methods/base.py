"""The frame of every method: a Keras model that attacks its network and trains on what the attack found.

A method is what its attack climbs (`attack_objective`) plus what its training descends (`training_loss`).
The step itself is written once, here.
"""

import random
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_mart import distribution, losses
from keras_mart.attacks.inference import inference
from keras_mart.methods.wrapper import NetworkModel, images_of

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


class AdversarialModel(NetworkModel):
    """A classifier trained against an adversary, with `compile`, `fit`, `evaluate`, `predict` and `save` as ever.

    Calling it calls the wrapped network and returns float32 logits. The metrics are `loss`, `natural_accuracy`
    and `adversarial_accuracy` (unweighted); `metrics=` of `compile` apply to the natural logits. In validation
    the attack climbs its own loss at its own epsilon, so that `val_adversarial_accuracy` compares across methods, and
    `val_loss` is the method's loss on what it found. Weight regularisation counts once; activity regularisation counts
    for the last training forward of a step, the adversarial one.

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
        super().__init__(network, **kwargs)
        if self.has_adversary and (isinstance(attack, type) or not hasattr(attack, "maximise")):
            raise ValueError(
                f"`attack` must be able to climb the objective of {type(self).__name__}, as keras_mart.PGD does. "
                f"Received: attack={attack!r}"
            )
        seed = random.getrandbits(31) if seed is None else seed
        if not 0 <= seed < 2**31:
            raise ValueError(f"`seed` must be an integer in [0, 2**31). Received: seed={seed}")
        self.attack = attack
        self.seed = seed
        self.step = self.add_weight(
            shape=(), dtype="int32", trainable=False, name="step", initializer="zeros",
            aggregation="only_first_replica",
        )  # fmt: skip
        self.natural_accuracy = keras.metrics.SparseCategoricalAccuracy("natural_accuracy")
        if self.has_adversary:
            self.adversarial_accuracy = keras.metrics.SparseCategoricalAccuracy("adversarial_accuracy")

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

    # What the hooks build on.

    def inference(self):
        """The network as attacks see it: maps images to float32 logits, in evaluation mode."""
        return inference(self.network)

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
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = distribution.agree_on_overflow(gradients)
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
            natural = ops.stop_gradient(self.inference()(batch.images))
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
        images = ops.cast(images_of(x), "float32")
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        weights = ops.ones_like(labels, "float32") if weights is None else ops.cast(weights, "float32")
        tensors = (images, labels, ops.reshape(weights, (-1,)), index)
        return Batch(*_fill(tensors))

    def _seed(self, purpose, number):
        seed = tf.random.fold_in(tf.constant([self.seed, purpose], "int32"), ops.convert_to_tensor(number))
        return tf.random.fold_in(seed, distribution.replica_id())

    def get_config(self):
        attack = keras.saving.serialize_keras_object(self.attack)
        return {**super().get_config(), "attack": attack, "seed": self.seed}


def _fill(tensors):
    present = [tensor for tensor in tensors if tensor is not None]
    filled, real = distribution.fill_if_empty(present)
    return *filled, *[None] * (len(tensors) - len(present)), real
