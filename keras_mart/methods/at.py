"""Adversarial training (AT) of Madry et al."""

import keras

from keras_mart import losses
from keras_mart.methods import model
from keras_mart.methods.batch import Outputs
from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
class AT(model.AdversarialModel):
    """Adversarial training (AT): CE(q, y) on adversarial images only.

    Natural images are forwarded in evaluation mode, to compute their accuracy, so that BatchNormalization's statistics
    come from adversarial images only, as in the paper.

    Args:
        network, attack, seed: as in `AdversarialModel`.

    Reference: Madry et al., arXiv 1706.06083.
    """

    trains_on_natural = False

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        return losses.cross_entropy(labels, outputs.adversarial)
