"""Adversarial logit pairing (ALP), in the form of the MART paper and of its own paper."""

import keras

from keras_mart import losses
from keras_mart.methods import weighted
from keras_mart.methods.batch import Outputs
from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
class ALP(weighted.PairingModel):
    """Adversarial logit pairing (ALP): cross-entropy + beta * squared distance of natural and adversarial outputs.

    Args:
        network, attack, seed: as in `AdversarialModel`.
        beta: weight of the distance.
        form: "mart" for CE(q, y) and the distance of probabilities, as in the table of the MART paper; "original" for
            (CE(p, y) + CE(q, y)) / 2 and the distance of logits, as in Kannan et al.

    Reference: Kannan et al., arXiv 1803.06373; Wang et al., ICLR 2020, table 1.
    """

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        loss = losses.alp if self.form == "mart" else losses.alp_original
        return loss(labels, outputs.natural, outputs.adversarial, self.beta)

    def loss_terms(self, labels: Tensor, outputs: Outputs) -> dict[str, Tensor]:
        return {
            "natural_cross_entropy": losses.cross_entropy(labels, outputs.natural),
            "adversarial_cross_entropy": losses.cross_entropy(labels, outputs.adversarial),
            "squared_distance_of_logits": losses.squared_distance(outputs.natural, outputs.adversarial),
        }
