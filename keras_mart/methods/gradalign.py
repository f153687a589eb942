"""Gradient alignment (GradAlign)."""

import keras
import tensorflow as tf
from keras import ops

from keras_mart import losses, randomness
from keras_mart.methods import weighted
from keras_mart.methods.batch import Outputs
from keras_mart.typing import Tensor

# Folded into the seed, so that the random point differs from the attack's random start.
POINT = 0x6A116


@keras.saving.register_keras_serializable("keras_mart")
class GradAlign(weighted.WeightedModel):
    """Gradient alignment (GradAlign): CE(q, y) + beta * (1 - cos(g(x), g(x + eta))), g the gradient of CE at an image.

    eta is drawn uniformly from the ball. The second term prevents the "catastrophic overfitting" of training with
    one-step attacks, such as `FGSM`, in larger balls. g(x) is held fixed, as in the official code. Both gradients take
    additional forward passes in training mode.

    Differences: x + eta is clipped to [0, 1]. In the official code FGSM uses the gradient at x in training mode;
    `attack_mode="training"` gives the same images. The official code averages over the examples whose two gradients are
    not zero; here all other examples count as aligned, in float16 also those whose gradient underflows.

    Args:
        network, attack, seed: as in `AdversarialModel`.
        beta: weight of the second term, the paper's lambda. In the official scripts for CIFAR-10 it is
            0.02 * 10^(epsilon / (8/255)), which is 0.2 at 8/255 and 2 at 16/255.

    Reference: Andriushchenko and Flammarion, arXiv 2007.02617, and its code
    (github.com/tml-epfl/understanding-fast-adv-training).
    """

    default_beta = 0.2
    trains_on_natural = False

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        def gradient(images):
            with tf.GradientTape() as tape:
                tape.watch(images)
                values = losses.cross_entropy(labels, outputs.forward(images))
            return tape.gradient(values, images)

        near = self.attack.threat.sample(outputs.images, randomness.fold_in(outputs.seed, POINT), outputs.epsilon)
        pair = ops.stop_gradient(gradient(outputs.images)), gradient(near)
        return losses.grad_align(labels, outputs.natural, outputs.adversarial, *pair, self.beta)
