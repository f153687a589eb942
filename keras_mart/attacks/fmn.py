"""FMN: the nearest adversarial image, by ascent in a ball whose radius follows the decision boundary."""

import dataclasses
import math

import keras
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import base, gradients
from keras_mart.threats import SMALLEST_NORM, choose
from keras_mart.typing import ArrayLike, ImageFunction, Tensor

# Constants of the official code: the last step size, as a share of the first, and the last gamma.
LAST_STEP, LAST_GAMMA = 0.01, 0.001
# The image found is moved this much further: it lies so near to the boundary that rounding could change its class.
BEYOND = 0.001


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class FMN(base.Attack):
    """Fast minimum-norm attack: climbs the logit margin in a ball whose radius converges to the decision boundary.

        x <- project(x + step_size * radius * direction(gradient))

    The radius is multiplied by 1 - gamma where x is misclassified, and limited to the distance of the nearest
    misclassified image; where x is not, it is multiplied by 1 + gamma. Before the first misclassified image it is
    1 + gamma times the distance of the boundary of the linearised margin. Step size and gamma follow a cosine, down to
    0.01 of the first step and to 0.001. The nearest misclassified image, moved a thousandth further, is returned if it
    lies within epsilon, otherwise the natural image. The search does not depend on epsilon: one run of
    `keras_mart.evaluate` gives the accuracy at every epsilon (`Table.curve`). The attack is deterministic.

    Differences from the official code: steps are in units of the radius, not of the input, so that one default suits
    networks of any robustness; in Linf they follow the gradient's sign, not the gradient over its L2 norm. Entries of
    the gradient that point out of [0, 1] are dropped; otherwise the search in L2 can stall before the boundary when
    many values are 0 or 1. The search goes beyond the estimated boundary, and the image returned beyond the one found,
    because exactly at the boundary rounding decides. The image after the last step counts too. L0, L1 and starting
    points are not supported.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of gradient steps.
        step_size: length of the first step, in units of the radius.
        gamma: the share by which the radius changes at first, in [0.001, 1).

    Raises:
        ValueError: `steps` or `step_size` not positive, or `gamma` outside [0.001, 1).

    Reference: Pintor et al., arXiv 2102.12827, algorithm 1; github.com/pralab/Fast-Minimum-Norm-FMN-Attack.
    """

    steps: int = 100
    _: dataclasses.KW_ONLY
    step_size: float = 2.0
    gamma: float = 0.05

    minimises = True

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.steps, "steps")
        if not 0 < self.step_size < float("inf"):
            raise ValueError(f"`step_size` must be positive. Received: step_size={self.step_size!r}")
        if not LAST_GAMMA <= self.gamma < 1:
            raise ValueError(f"`gamma` must lie in [{LAST_GAMMA}, 1). Received: gamma={self.gamma!r}")

    @property
    def gradients(self) -> int:
        return self.steps

    def perturb(self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike) -> Tensor:
        del seed  # the attack is deterministic
        furthest = self.threat.distance(ops.where(images > 0.5, 0.0, 1.0), images)

        def objective(candidates):
            outputs = logits(candidates)
            return losses.margin(labels, outputs), ops.argmax(outputs, axis=-1) != labels

        def update_nearest(current, fooled, nearest, distance):
            current_distance = self.threat.distance(current, images)
            nearer = ops.logical_and(fooled, current_distance < distance)
            return choose(nearer, current, nearest), ops.where(nearer, current_distance, distance)

        def step(number, current, radius, nearest, distance):
            gradient, value, fooled = gradients.gradient_of(objective, current)
            gradient = _without_blocked(gradient, current)
            nearest, distance = update_nearest(current, fooled, nearest, distance)
            share = (1 + ops.cos(math.pi / self.steps * ops.cast(number, "float32"))) / 2
            gamma = LAST_GAMMA + (self.gamma - LAST_GAMMA) * share
            smaller = ops.minimum(radius * (1 - gamma), distance)
            estimate = self._boundary_distance(current, images, gradient, value)
            larger = (1 + gamma) * ops.where(distance < float("inf"), radius, estimate)
            # The estimated boundary may lie outside [0, 1].
            radius = ops.minimum(ops.where(fooled, smaller, larger), furthest)
            length = self.step_size * (LAST_STEP + (1 - LAST_STEP) * share) * radius
            moved = self.threat.ascend(current, gradient, length)
            return self.threat.project(moved, images, radius), radius, nearest, distance

        infinite = ops.full((ops.shape(images)[0],), float("inf"))
        current, _, *found = gradients.loop(step, (images, infinite, images, infinite), self.steps)
        nearest, _ = update_nearest(current, objective(current)[1], *found)
        beyond = ops.clip(images + (1 + BEYOND) * (nearest - images), 0.0, 1.0)
        within = self.threat.distance(beyond, images) <= self.threat.epsilon
        return ops.stop_gradient(choose(within, beyond, images))

    def _boundary_distance(self, current, images, gradient, value):
        """Returns the [batch] distance of the current images plus that from there to the linearised boundary."""
        slope = ops.maximum(self.threat.dual(gradient), SMALLEST_NORM)
        return self.threat.distance(current, images) + ops.abs(value) / slope


def _without_blocked(gradient, images):
    """Returns the gradient with 0 for values at a limit of [0, 1] that a step would leave."""
    leaves = ops.where(gradient > 0, images >= 1, images <= 0)
    return ops.where(leaves, 0.0, gradient)
