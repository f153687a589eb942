"""Targeted Auto-PGD: climbs towards each of several wrong classes in turn."""

import dataclasses

import keras

from keras_mart import checks, losses
from keras_mart.attacks import apgd, base
from keras_mart.typing import ArrayLike, ImageFunction, Tensor


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class APGDT(base.Rounds):
    """Targeted Auto-PGD: climbs the targeted DLR (`losses.targeted_dlr`) towards one class in each round.

    The targets are the most likely wrong classes of the natural image, most likely first; each is tried on the
    examples that are still classified correctly.

    Differences: with 2 or 3 classes, where the targeted ratio is undefined, it climbs the logit difference.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of gradient steps towards each target.
        targets: largest number of targets; never more than there are wrong classes.
        rho, gradient_samples: as in `APGDCE`.

    Raises:
        ValueError: `steps`, `targets` or `gradient_samples` not positive, or `rho` outside [0, 1].

    Reference: Croce and Hein, arXiv 2003.01690; github.com/fra31/auto-attack.
    """

    steps: int = 100
    _: dataclasses.KW_ONLY
    targets: int = 9
    rho: float = apgd.RHO
    gradient_samples: int = 1

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.targets, "targets")
        apgd.check(self)

    @property
    def gradients(self) -> int:
        return (self.steps + 1) * self.gradient_samples

    def rounds(self, classes: int) -> int:
        return min(self.targets, classes - 1)

    def perturb(
        self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike, number: Tensor, candidates: Tensor
    ) -> Tensor:
        target = base.ranked_class(logits(images), number + 1)

        def loss(labels, outputs):
            return losses.targeted_dlr(labels, outputs, target)

        return apgd.adversarial(self, logits, images, labels, seed, loss)
