"""N-FGSM: a single gradient step from a noisy image, for training."""

import dataclasses
import math
from typing import cast

import keras
from keras import ops

from keras_mart import randomness
from keras_mart.attacks import base, gradients, pgd
from keras_mart.typing import ArrayLike, ImageFunction, Scalar, Seed, Tensor


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class NFGSM(base.Climb):
    """N-FGSM: one gradient step from a point drawn uniformly from a larger ball, without projection.

        x' = clip(x + eta + step_size * direction(gradient at x + eta), 0, 1)

    An attack for training that costs one gradient. A method trains on images that may lie outside the ball, in Linf up
    to noise * epsilon + step_size away. When it is called on a model, in validation and in evaluation, its images are
    projected into the ball like those of every attack; as an evaluation attack it is weak.

    Differences: the official code computes the gradient in training mode, as methods do with `attack_mode="training"`.
    It is for Linf only; in L2 the noise is drawn from the L2 ball.

    Args:
        threat: the ball, `Linf` or `L2`.
        noise: radius of the ball that eta is drawn from, in multiples of epsilon; 2 in the official code, but 3 for
            SVHN at 12/255. x + eta is clipped to [0, 1].
        step_size: length of the step in input units; epsilon by default, as in the official code.

    Raises:
        ValueError: `noise` negative or not finite, or `step_size` not positive or more than 2 epsilon.

    Reference: de Jorge et al., arXiv 2202.01181, and its code (github.com/pdejorge/N-FGSM).
    """

    noise: float = 2.0
    _: dataclasses.KW_ONLY
    step_size: float | None = None

    gradients, leaves_ball = 1, True

    @property
    def starts_at_image(self) -> bool:
        return self.noise == 0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"`noise` must be finite and not negative. Received: noise={self.noise}")
        if self.step_size is None:
            object.__setattr__(self, "step_size", self.threat.epsilon)
        pgd.check_step_size(self)

    def maximise(
        self, objective: ImageFunction, x: Tensor, epsilon: Scalar | None = None, seed: Seed = None,
        score: ImageFunction | None = None,
    ) -> Tensor:  # fmt: skip
        seeds = randomness.split(base.as_seed(seed), 2)
        noisy = self.threat.sample(x, seeds[0], self.scaled(self.noise * self.threat.epsilon, epsilon))
        step_size = cast(float, self.step_size)  # set by __post_init__
        gradient, *_ = gradients.gradient_of(gradients.values_only(objective), noisy)
        moved = self.threat.ascend(noisy, gradient, self.scaled(step_size, epsilon), seeds[1])
        return ops.stop_gradient(ops.clip(moved, 0.0, 1.0))

    def perturb(self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike) -> Tensor:
        return self.threat.project(super().perturb(logits, images, labels, seed), images)
