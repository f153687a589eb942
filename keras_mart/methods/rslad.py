"""Robust soft label adversarial distillation."""

import keras

from keras_mart import losses
from keras_mart.methods import taught
from keras_mart.methods.hyperparameter import Hyperparameter


@keras.saving.register_keras_serializable("keras_mart")
class RSLAD(taught.TaughtModel):
    """Robust soft label adversarial distillation: a small network learns what a robust one says of natural images.

        (1 - alpha) * KL(t, p) + alpha * KL(t, q),  t = softmax(the teacher's logits on x)

    The attack climbs KL(t, q) with t held fixed. Labels are not used.

    Differences: the official code divides by the number of classes too (for CIFAR-10 only): its rate of 0.1 with weight
    decay of 2e-4 is 0.01 with 2e-3 here. It forwards the adversarial batch first, and adds 1e-5 inside a logarithm.

    Args:
        network, attack, seed: as in `AdversarialModel`; the official attack is PGD of 10 steps of 2/255 from a Gaussian
            start.
        teacher: an adversarially trained network, a Keras classifier that returns logits.
        alpha: share of the adversarial images.

    Raises:
        ValueError: an alpha outside [0, 1]; a teacher that is none or does not fit.

    Reference: Zi et al., arXiv 2108.07969, and its code (github.com/zibojia/RSLAD).
    """

    alpha = Hyperparameter("between 0 and 1", lambda value: 0 <= value <= 1)

    def __init__(self, network, attack=None, *, alpha=5 / 6, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.alpha = alpha

    def attack_objective(self, x, labels):
        logits, told = self.inference(), self.taught(x)
        return lambda candidates: losses.kl_divergence(told, logits(candidates))

    def training_loss(self, labels, outputs):
        told = self.taught(outputs.images)
        return losses.rslad(labels, outputs.natural, outputs.adversarial, told, self.alpha)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha}
