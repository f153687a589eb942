"""Gradient alignment."""

import keras
import tensorflow as tf
from keras import ops

from keras_mart import losses, randomness
from keras_mart.methods import weighted

# Tells the random point from the attack's start, which is drawn from the same seed.
POINT = 0x6A116


@keras.saving.register_keras_serializable("keras_mart")
class GradAlign(weighted.WeightedModel):
    """Gradient alignment: CE(q, y) + beta * (1 - cos(g(x), g(x + eta))), g being the gradient of the CE by the image.

    eta is drawn uniformly from the ball. The second term keeps attacks of one step from failing in training, as they do
    in larger balls ("catastrophic overfitting"); the attack meant is `FGSM`. g(x) is held fixed, as in the official
    code; both gradients are taken in training mode, by two more forwards, which BatchNormalization's statistics see.

    Differences: x + eta is clipped to [0, 1]. The official code uses the gradient at x for its FGSM too, which it takes
    in training mode; here attacks see evaluation mode. There the mean is over the examples with two gradients that are
    not zero, here the others count as aligned.

    Args:
        network, attack, seed: as in `AdversarialModel`.
        beta: weight of the second term (the paper's lambda); the official code has 0.2 at 8/255 on CIFAR-10, and
            exp(epsilon * 255 / 8 * ln(10) + ln(0.02)) in other balls there.

    Reference: Andriushchenko and Flammarion, arXiv 2007.02617, and its code
    (github.com/tml-epfl/understanding-fast-adv-training).
    """

    default_beta = 0.2
    trains_on_natural = False

    def training_loss(self, labels, outputs):
        def gradient(images):
            with tf.GradientTape() as tape:
                tape.watch(images)
                values = losses.cross_entropy(labels, outputs.forward(images))
            return tape.gradient(values, images)

        near = self.attack.threat.sample(outputs.images, randomness.fold_in(outputs.seed, POINT), outputs.epsilon)
        pair = ops.stop_gradient(gradient(outputs.images)), gradient(near)
        return losses.grad_align(labels, outputs.natural, outputs.adversarial, *pair, self.beta)
