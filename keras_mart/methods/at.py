"""Madry's adversarial training."""

import keras

from keras_mart import losses
from keras_mart.methods import model


@keras.saving.register_keras_serializable("keras_mart")
class AT(model.AdversarialModel):
    """Adversarial training: CE(q, y) on adversarial images alone.

    The natural images are forwarded in evaluation mode, for the natural accuracy only, so that BatchNorm's
    statistics come from adversarial images alone, as in the paper.

    Args:
        network, attack, seed: as in `AdversarialModel`.

    Reference: Madry et al., arXiv 1706.06083.
    """

    trains_on_natural = False

    def training_loss(self, labels, outputs):
        return losses.cross_entropy(labels, outputs.adversarial)
