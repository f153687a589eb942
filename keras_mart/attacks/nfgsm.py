"""N-FGSM: one step from a noisy image, for training."""

import dataclasses
import math

import keras
from keras import ops

from keras_mart import randomness
from keras_mart.attacks import base, gradients, pgd


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class NFGSM(base.Climb):
    """N-FGSM: one gradient step from a point that is drawn uniformly from a larger ball, not projected back.

        x' = clip(x + eta + step_size * direction(gradient at x + eta), 0, 1)

    An attack for training, at the price of one gradient: a method trains on images that may lie outside the ball, in
    Linf up to noise * epsilon + step_size away. CallableAttack on a model, in validation and in evaluation its images are
    projected into the ball, as those of every attack; it is a weak one there.

    Differences: the official code takes the gradient in training mode, as methods do with `attack_mode="training"`. It
    is for Linf; in L2 the noise is drawn from the L2 ball.

    Args:
        threat: the ball, `Linf` or `L2`.
        noise: radius of the ball that eta is drawn from, in multiples of epsilon; in the official code 2, for SVHN at
            12/255 3. x + eta is clipped to [0, 1].
        step_size: length of the step in input units; epsilon by default, as in the official code.

    Raises:
        ValueError: a noise that is negative or not finite, a step that is not positive or longer than the ball is wide.

    Reference: de Jorge et al., arXiv 2202.01181, and its code (github.com/pdejorge/N-FGSM).
    """

    noise: float = 2.0
    _: dataclasses.KW_ONLY
    step_size: float | None = None

    gradients, leaves_ball = 1, True

    @property
    def starts_at_image(self):
        return self.noise == 0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"`noise` must be finite and not negative. Received: noise={self.noise}")
        if self.step_size is None:
            object.__setattr__(self, "step_size", self.threat.epsilon)
        pgd.check_step_size(self)

    def maximise(self, objective, x, epsilon=None, seed=None, score=None):
        seeds = randomness.split(base.as_seed(seed), 2)
        noisy = self.threat.sample(x, seeds[0], self.scaled(self.noise * self.threat.epsilon, epsilon))
        gradient, *_ = gradients.gradient_of(gradients.values_only(objective), noisy)
        moved = self.threat.ascend(noisy, gradient, self.scaled(self.step_size, epsilon), seeds[1])
        return ops.stop_gradient(ops.clip(moved, 0.0, 1.0))

    def perturb(self, logits, images, labels, seed):
        return self.threat.project(super().perturb(logits, images, labels, seed), images)
