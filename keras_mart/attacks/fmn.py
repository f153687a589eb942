"""FMN: the nearest adversarial image, by ascent in a ball whose radius follows the decision boundary."""

import dataclasses
import math

import keras
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import base, gradients
from keras_mart.threats import SMALLEST_NORM, choose

# Constants of the official code: what the step size ends at, as a share of the first, and what gamma ends at.
LAST_STEP, LAST_GAMMA = 0.01, 0.001
# What is found is drawn on by this share: it lies so near to the boundary that rounding elsewhere would decide.
BEYOND = 0.001


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class FMN(base.Attack):
    """Fast minimum-norm attack: climbs the logit margin in a ball that grows and shrinks round the decision boundary.

    x <- project(x + step_size * radius * direction(gradient)). The radius is times 1 - gamma where x is misclassified,
    and at most the distance of the nearest such image; times 1 + gamma where it is not. Until one was met it is
    1 + gamma times the distance at which the boundary lies if the margin is linear. Steps and gamma fall along a
    cosine, to 0.01 of the first step and to 0.001. Of all images met the nearest misclassified one is returned, drawn
    a thousandth further, if it then lies within epsilon, else the natural image. Epsilon decides nothing else: one run
    of `keras_mart.evaluate` gives the accuracy at every epsilon (`Table.curve`). Nothing here is random.

    Differences from the official code: steps are in units of the radius, not of the input, so that one default serves
    networks of any robustness; in Linf they follow the gradient's sign, not the gradient over its L2 norm. Entries of
    the gradient that point out of [0, 1] are dropped, without which the search in L2 can come to rest before the
    boundary when many values lie on a wall. The boundary's estimate is gone beyond, and so is the image found: exactly
    there rounding would decide. The image after the last step counts too. No L0, no L1, no given starting points.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of gradient steps.
        step_size: length of the first step, in units of the radius.
        gamma: by which share the radius changes at first, in [0.001, 1).

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
    def gradients(self):
        return self.steps

    def perturb(self, logits, images, labels, seed):
        del seed  # nothing is random
        furthest = self.threat.distance(ops.where(images > 0.5, 0.0, 1.0), images)

        def objective(candidates):
            outputs = logits(candidates)
            return losses.margin(labels, outputs), ops.argmax(outputs, axis=-1) != labels

        def keep(current, fooled, nearest, distance):
            away = self.threat.distance(current, images)
            nearer = ops.logical_and(fooled, away < distance)
            return choose(nearer, current, nearest), ops.where(nearer, away, distance)

        def step(number, current, radius, nearest, distance):
            gradient, value, fooled = gradients.gradient_of(objective, current)
            gradient = _inside(gradient, current)
            nearest, distance = keep(current, fooled, nearest, distance)
            share = (1 + ops.cos(math.pi / self.steps * ops.cast(number, "float32"))) / 2
            gamma = LAST_GAMMA + (self.gamma - LAST_GAMMA) * share
            smaller = ops.minimum(radius * (1 - gamma), distance)
            estimate = self._reach(current, images, gradient, value)
            larger = (1 + gamma) * ops.where(distance < float("inf"), radius, estimate)
            # What is estimated of the boundary may lie outside the box.
            radius = ops.minimum(ops.where(fooled, smaller, larger), furthest)
            length = self.step_size * (LAST_STEP + (1 - LAST_STEP) * share) * radius
            moved = self.threat.ascend(current, gradient, length)
            return self.threat.project(moved, images, radius), radius, nearest, distance

        nowhere = ops.full((ops.shape(images)[0],), float("inf"))
        current, _, *kept = gradients.loop(step, (images, nowhere, images, nowhere), self.steps)
        nearest, _ = keep(current, objective(current)[1], *kept)
        beyond = ops.clip(images + (1 + BEYOND) * (nearest - images), 0.0, 1.0)
        within = self.threat.distance(beyond, images) <= self.threat.epsilon
        return ops.stop_gradient(choose(within, beyond, images))

    def _reach(self, current, images, gradient, value):
        """[batch] the distance from the images at which `value`, if linear, is 0: that of the current and the rest."""
        slope = ops.maximum(self.threat.dual(gradient), SMALLEST_NORM)
        return self.threat.distance(current, images) + ops.abs(value) / slope


def _inside(gradient, images):
    """The gradient with 0 where a step along it would leave [0, 1] at once."""
    leaves = ops.where(gradient > 0, images >= 1, images <= 0)
    return ops.where(leaves, 0.0, gradient)
