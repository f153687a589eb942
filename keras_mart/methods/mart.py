"""MART, the method that this package is named after."""

import keras

from keras_mart import losses
from keras_mart.methods import weighted
from keras_mart.methods.batch import Outputs
from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
class MART(weighted.WeightedModel):
    """Misclassification-aware adversarial training (MART): BCE(q, y) + beta * KL(p, q) * (1 - p_y).

    The attack climbs the cross-entropy. `keras_mart.losses` has each factor as a function, `boosted_cross_entropy`,
    `kl_divergence` and `misclassification_weight`, from which a variant can build its own `training_loss`.

    Args:
        network, attack, seed: as in `AdversarialModel`.
        beta: weight of the divergence; the paper uses 5 for ResNet-18 and 6 for WRN-34-10.

    Reference: Wang et al., ICLR 2020 (OpenReview rklOg6EFwS), equation 11.
    """

    default_beta = 5.0

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        return losses.mart(labels, outputs.natural, outputs.adversarial, self.beta)

    def loss_terms(self, labels: Tensor, outputs: Outputs) -> dict[str, Tensor]:
        return {
            "boosted_cross_entropy": losses.boosted_cross_entropy(labels, outputs.adversarial),
            "kl_divergence": losses.kl_divergence(outputs.natural, outputs.adversarial),
            "misclassification_weight": losses.misclassification_weight(labels, outputs.natural),
        }
