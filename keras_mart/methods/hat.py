"""Helper-based adversarial training."""

import keras
from keras import ops

from keras_mart import losses
from keras_mart.methods import taught, trades
from keras_mart.methods.hyperparameter import NOT_NEGATIVE, POSITIVE, Hyperparameter


@keras.saving.register_keras_serializable("keras_mart")
class HAT(taught.TaughtModel, trades.TRADES):
    """Helper-based adversarial training: TRADES + gamma * CE on a helper image farther out than the adversarial one.

        CE(p, y) + beta * KL(p, q) + gamma * CE(softmax(logits on x + helper_scale * (x' - x)), k)

    where k is the class that the teacher, a network of standard training, takes x' for. Beyond the ball the teacher's
    decision holds, so that margins do not become larger than need be, at the cost of natural accuracy. The helper image
    is not clipped to [0, 1], as in the official code; it is a third forward in training mode. The attack climbs
    KL(p, q) with p held fixed.

    Differences: none, but the official code's variant with CE(q, y) in place of the divergence (`--robust-loss=ce`) is
    not here.

    Args:
        network, attack, seed: as in `TRADES`.
        teacher: a network of standard training, a Keras classifier that returns logits.
        beta: weight of the divergence; 2.5 for ResNet-18, 3.5 with extra data in the official code.
        gamma: weight of the helper's cross-entropy.
        helper_scale: how far out the helper lies, 1 being the adversarial image; 2 is what the official commands take
            (the function's own default, 3.5, is never used there).

    Raises:
        ValueError: as in `TRADES`; a teacher that is none or does not fit.

    Reference: Rade and Moosavi-Dezfooli, ICLR 2022, arXiv 2203.13639, and its code (github.com/imrahulr/hat).
    """

    default_beta = 2.5

    gamma = Hyperparameter(*NOT_NEGATIVE)
    helper_scale = Hyperparameter(*POSITIVE)

    def __init__(self, network, attack=None, *, gamma=0.5, helper_scale=2.0, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.gamma, self.helper_scale = gamma, helper_scale

    def training_loss(self, labels, outputs):
        helper = outputs.forward(outputs.images + self.helper_scale * (outputs.perturbed - outputs.images))
        told = ops.argmax(self.taught(outputs.perturbed), axis=-1)
        return losses.hat(labels, outputs.natural, outputs.adversarial, helper, told, self.beta, self.gamma)

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma, "helper_scale": self.helper_scale}
