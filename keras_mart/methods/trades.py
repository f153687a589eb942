"""TRadeoff-inspired Adversarial DEfense via Surrogate-loss minimization (TRADES)."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_mart import losses
from keras_mart.attacks.base import Attack
from keras_mart.methods import weighted
from keras_mart.methods.batch import Outputs
from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
class TRADES(weighted.WeightedModel):
    """TRADES: CE(p, y) + beta * KL(p, q); its attack climbs KL(p, q) with p held fixed.

    Differences: the official code forwards the natural batch twice in training mode, so that it updates
    BatchNormalization's statistics twice; here it is forwarded once.

    Args:
        network, seed: as in `AdversarialModel`.
        attack: as in `AdversarialModel`, but it must not start at the natural image, where the divergence has no slope.
        beta: weight of the divergence; 6 in the paper.

    Raises:
        ValueError: the attack starts at the natural image.

    Reference: Zhang et al., arXiv 1901.08573.
    """

    default_beta = 6.0

    def __init__(self, network: keras.Model, attack: Attack | None = None, **kwargs: Any) -> None:
        super().__init__(network, attack, **kwargs)
        if getattr(attack, "starts_at_image", False):
            raise ValueError(
                "`attack` must not start at the natural image, where the gradient of the KL divergence is 0. "
                f"Received: attack={attack}"
            )

    def attack_objective(self, x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        logits = self.inference()
        natural = ops.stop_gradient(logits(x))
        return lambda candidates: losses.kl_divergence(natural, logits(candidates))

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        return losses.trades(labels, outputs.natural, outputs.adversarial, self.beta)

    def loss_terms(self, labels: Tensor, outputs: Outputs) -> dict[str, Tensor]:
        return {
            "cross_entropy": losses.cross_entropy(labels, outputs.natural),
            "kl_divergence": losses.kl_divergence(outputs.natural, outputs.adversarial),
        }
