"""Clean logit pairing (CLP), in the form of the MART paper and of its own paper."""

from typing import Any

import keras
from keras import ops

from keras_mart import losses, randomness
from keras_mart.attacks.base import Attack
from keras_mart.methods import weighted
from keras_mart.methods.batch import Outputs
from keras_mart.typing import Tensor

# Standard deviation of the noise in Kannan et al., images in [0, 1].
SIGMA = 0.5


@keras.saving.register_keras_serializable("keras_mart")
class CLP(weighted.PairingModel):
    """Clean logit pairing (CLP): cross-entropy + beta * squared distance of outputs.

    With `form="original"` the training images are natural images with Gaussian noise, clipped to [0, 1], and the attack
    is used only for the adversarial metrics of validation: `adversarial_accuracy` during training is then the accuracy
    on noisy images, and `val_loss` pairs adversarial images. Pairs stay together on replicas if each of them gets an
    even number of examples; the parts of a step (`accumulate`) always keep them together.

    Args:
        network, attack, seed: as in `AdversarialModel`.
        beta: weight of the distance.
        form: "mart" for CE(p, y) and the distance of natural and adversarial probabilities, as in the table of the MART
            paper; "original" for CE on noisy images and the distance of the logits of pairs of examples, as in Kannan
            et al.

    Reference: Kannan et al., arXiv 1803.06373; Wang et al., ICLR 2020, table 1.
    """

    def __init__(self, network: keras.Model, attack: Attack | None = None, **kwargs: Any) -> None:
        super().__init__(network, attack, **kwargs)
        if self.form == "original" and self.epsilon_schedule is not None:
            raise ValueError(
                "`epsilon_schedule` has no effect on noise. "
                f"Received: form='original', epsilon_schedule={self.epsilon_schedule!r}"
            )

    # Properties, since `form` may be set later.
    @property
    def trains_on_natural(self) -> bool:  # type: ignore[override]
        return self.form == "mart"

    @property
    def pairs_neighbours(self) -> bool:  # type: ignore[override]
        return self.form == "original"

    def perturb(
        self, x: Tensor, labels: Tensor, seed: Any, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        if self.form == "mart":
            return super().perturb(x, labels, seed, index)
        noise = SIGMA * randomness.normal(ops.shape(x), seed)
        return ops.clip(x + noise, 0.0, 1.0), self.attack.threat.epsilon

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        loss = losses.clp if self.form == "mart" else losses.clp_original
        return loss(labels, outputs.natural, outputs.adversarial, self.beta)

    def loss_terms(self, labels: Tensor, outputs: Outputs) -> dict[str, Tensor]:
        if self.form == "original":  # the other term compares examples, so that it has no value for each
            return {"cross_entropy": losses.cross_entropy(labels, outputs.adversarial)}
        return {
            "cross_entropy": losses.cross_entropy(labels, outputs.natural),
            "squared_distance_of_logits": losses.squared_distance(outputs.natural, outputs.adversarial),
        }
