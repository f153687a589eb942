"""The same training written the usual way in Keras, as a baseline.

The network calls its own layers, all of them Keras's. The attack is a Python loop over a gradient tape, which tracing
unrolls; it does not handle gradients that underflow in half precision. Weight decay is the usual term of the loss,
which is equivalent to that of `keras_mart.optimizers.SGD`. The losses are the package's, so that both compute the same.
"""

import keras
import tensorflow as tf

from keras_mart import layers, losses
from keras_mart.attacks.pgd import GAUSSIAN_START

BETAS = {"mart": 5.0, "trades": 6.0}


def keras_only(network):
    """Returns a copy of the network with Keras's own BatchNormalization and the same weights."""

    def clone(layer):
        own = type(layer) is layers.BatchNormalization
        return (keras.layers.BatchNormalization if own else type(layer)).from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=clone, recursive=True)
    copy.set_weights(network.get_weights())
    return copy


def pgd(objective, images, attack):
    """Runs PGD in the Linf ball from a Gaussian start, with the epsilon, steps and step size of a `keras_mart.PGD`."""
    epsilon = attack.threat.epsilon
    candidates = tf.clip_by_value(images + GAUSSIAN_START * tf.random.normal(tf.shape(images)), 0.0, 1.0)
    for _ in range(attack.steps):
        with tf.GradientTape() as tape:
            tape.watch(candidates)
            loss = tf.reduce_sum(objective(candidates))
        candidates += attack.step_size * tf.sign(tape.gradient(loss, candidates))
        candidates = tf.clip_by_value(candidates, images - epsilon, images + epsilon)
        candidates = tf.clip_by_value(candidates, 0.0, 1.0)
    return tf.stop_gradient(candidates)


class Plain(keras.Model):
    """Standard training, AT, TRADES or MART of a network.

    Args:
        method: "standard", "at", "trades" or "mart".
        network: a Keras classifier that returns logits.
        attack: a `keras_mart.PGD`, of which only the numbers are used.
        weight_decay: factor of the weight that is added to its gradient.
    """

    def __init__(self, method, network, attack, weight_decay):
        super().__init__()
        self.method, self.network, self.attack, self.weight_decay = method, network, attack, weight_decay
        self.mean_loss = keras.metrics.Mean("mean_loss")
        self.natural_accuracy = keras.metrics.SparseCategoricalAccuracy("natural_accuracy")
        self.adversarial_accuracy = keras.metrics.SparseCategoricalAccuracy("adversarial_accuracy")
        self.built = True

    def call(self, images, training=None):
        return self.network(images, training=training)

    def perturb(self, images, labels, *_):
        """Returns adversarial images for the cross-entropy or, for TRADES, the divergence from the natural logits."""

        def logits(candidates):
            return self.network(candidates, training=False)

        if self.method == "trades":
            natural = tf.stop_gradient(logits(images))
            return pgd(lambda candidates: losses.kl_divergence(natural, logits(candidates)), images, self.attack)
        return pgd(lambda candidates: losses.cross_entropy(labels, logits(candidates)), images, self.attack)

    def training_loss(self, labels, natural, adversarial):
        """Returns the method's loss, [batch]."""
        if self.method in BETAS:
            return getattr(losses, self.method)(labels, natural, adversarial, BETAS[self.method])
        return losses.cross_entropy(labels, natural if self.method == "standard" else adversarial)

    def train_step(self, data):
        images, labels = data
        if self.method != "standard":
            adversarial_images = self.perturb(images, labels)
        if self.method == "at":
            natural, adversarial = self.network(images, training=False), None
        with tf.GradientTape() as tape:
            if self.method != "at":
                natural, adversarial = self.network(images, training=True), None
            if self.method != "standard":
                adversarial = self.network(adversarial_images, training=True)
            loss = tf.reduce_mean(self.training_loss(labels, natural, adversarial))
            decay = self.weight_decay * tf.add_n([tf.nn.l2_loss(weight.value) for weight in self.trainable_variables])
            scaled = self.optimizer.scale_loss(loss + decay)
        self.optimizer.apply(tape.gradient(scaled, self.trainable_variables), self.trainable_variables)
        return self._measure(labels, loss, natural, adversarial)

    def _measure(self, labels, loss, natural, adversarial):
        self.mean_loss.update_state(loss)
        self.natural_accuracy.update_state(labels, natural)
        logs = {"loss": self.mean_loss.result(), "natural_accuracy": self.natural_accuracy.result()}
        if adversarial is not None:
            self.adversarial_accuracy.update_state(labels, adversarial)
            logs["adversarial_accuracy"] = self.adversarial_accuracy.result()
        return logs
