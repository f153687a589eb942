"""FMN, the fast minimum-norm attack: a ball that shrinks round the nearest adversarial image."""

import dataclasses
import math

import keras
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import base, gradients
from keras_mart.threats import L2, choose

# The first and the last length of a step, in the L2 norm, and the first and the last share by which a ball changes.
STEP_SIZES, SHARES = (1.0, 0.01), (0.05, 0.001)
TINY = 1e-12


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class FMN(base.Attack):
    """Fast minimum-norm attack: looks for the nearest adversarial image; one within epsilon counts.

    Each step ascends the logit margin by an L2 step, then projects into a ball of its own for each example. Until an
    adversarial image was met, the ball reaches as far as the linearised boundary; then it shrinks by a share where the
    image is adversarial and grows by it where it is not. Steps and shares follow a cosine. Where nothing within epsilon
    is found, the natural image is returned. Nothing here is random, and epsilon does not enter the search: one run, of
    `keras_mart.evaluate`, gives the accuracy at every epsilon (`Table.curve`).

    Differences: in the official code a gradient may point out of [0, 1], and the ball reaches just to the linearised
    boundary; both can keep it from ever crossing that. Here such entries of the gradient are 0, and the ball reaches
    further by the step's share. It starts from the natural image, as by default there.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of gradient steps.

    Raises:
        ValueError: `steps` not positive.

    Reference: Pintor et al., arXiv 2102.12827, algorithm 1; github.com/pralab/Fast-Minimum-Norm-FMN-Attack.
    """

    minimises = True

    steps: int = 100

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.steps, "steps")

    @property
    def gradients(self):
        return self.steps

    def perturb(self, logits, images, labels, seed):
        furthest = self.threat.distance(ops.where(images < 0.5, 1.0, 0.0), images)

        def margin(candidates):
            outputs = logits(candidates)
            return losses.margin(labels, outputs), ops.argmax(outputs, axis=-1) != labels

        def step(number, candidates, epsilon, nearest, distance):
            cosine = (1 + ops.cos(math.pi * ops.cast(number, "float32") / self.steps)) / 2
            step_size, share = (last + (first - last) * cosine for first, last in (STEP_SIZES, SHARES))
            gradient, value, fooled = gradients.gradient_of(margin, candidates)
            blocked = ops.where(gradient > 0, candidates >= 1, candidates <= 0)
            gradient = ops.where(blocked, 0.0, gradient)
            away = self.threat.distance(candidates, images)
            nearer = ops.logical_and(fooled, away < distance)
            nearest, distance = choose(nearer, candidates, nearest), ops.where(nearer, away, distance)
            boundary = away + (1 + share) * ops.abs(value) / ops.maximum(self.threat.dual(gradient), TINY)
            outside = ops.where(ops.isinf(distance), boundary, epsilon * (1 + share))
            epsilon = ops.where(fooled, ops.minimum(epsilon * (1 - share), distance), outside)
            epsilon = ops.minimum(epsilon, furthest)
            moved = L2(0).ascend(candidates, gradient, step_size)
            return self.threat.project(moved, images, epsilon), epsilon, nearest, distance

        nowhere = ops.full((ops.shape(images)[0],), float("inf"))
        _, _, nearest, distance = gradients.loop(step, (images, nowhere, images, nowhere), self.steps)
        return ops.stop_gradient(choose(distance <= self.threat.epsilon, nearest, images))
