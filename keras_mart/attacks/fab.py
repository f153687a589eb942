"""FAB: the nearest adversarial image, by projections onto the linearised decision boundary."""

import dataclasses

import keras
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import base, gradients
from keras_mart.threats import L2, choose, per_example
from keras_mart.typing import ArrayLike, ImageFunction, Tensor

# Constants of the official code: the largest share of the natural image in a step, the factor by which a step goes
# beyond the boundary, and the share of its distance that an adversarial image keeps in the backward step.
ALPHA_MAX, OVERSHOOT, BACKWARD = 0.1, 1.05, 0.9
SMALLEST_STEP = 1e-8  # keeps the share of the natural image defined where both projections are 0
# Newton's method on the piecewise linear equation converges in fewer iterations than this.
MAX_ITERATIONS = 100


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class FABT(base.Rounds):
    """Targeted FAB: minimises the distance of an adversarial image, which counts if it lies within epsilon.

    Each step linearises the boundary to the target class, projects the current and the natural image onto it inside
    [0, 1], and goes slightly beyond a mixture of both. An adversarial image is kept if it is the nearest so far, and
    the search continues from nine tenths of the way to it. The targets are the most likely wrong classes of the natural
    image, each tried on the examples that are still classified correctly. If no image within epsilon is found, the
    natural image is returned. The attack is deterministic.

    Differences from the official code: only the projection, which sorts and bisects there and uses Newton's method
    here; with 2 or 3 classes it works unchanged.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of steps towards each target.
        targets: largest number of targets; never more than there are wrong classes.

    Raises:
        ValueError: `steps` or `targets` not positive.

    Reference: Croce and Hein, arXiv 1907.02044, and as used in arXiv 2003.01690; github.com/fra31/auto-attack.
    """

    steps: int = 100
    _: dataclasses.KW_ONLY
    targets: int = 9

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.steps, "steps")
        checks.positive_integer(self.targets, "targets")

    @property
    def gradients(self) -> int:
        return self.steps

    def rounds(self, classes: int) -> int:
        return min(self.targets, classes - 1)

    def perturb(
        self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike, number: Tensor, candidates: Tensor
    ) -> Tensor:
        target = base.ranked_class(logits(images), number + 1)

        def difference(current):
            return losses.logit_difference(labels, logits(current), target)

        def step(_, current, nearest, distance):
            normal, value, _ = gradients.gradient_of(gradients.values_only(difference), current)
            moved = self._move(current, images, normal, value)
            moved_distance = self.threat.distance(moved, images)
            fooled = ops.argmax(logits(moved), axis=-1) != labels
            nearer = ops.logical_and(fooled, moved_distance < distance)
            nearest = choose(nearer, moved, nearest)
            distance = ops.where(nearer, moved_distance, distance)
            backward = images + (moved - images) * BACKWARD
            return choose(fooled, backward, moved), nearest, distance

        infinite = ops.full((ops.shape(images)[0],), float("inf"))
        _, nearest, distance = gradients.loop(step, (images, images, infinite), self.steps)
        found = distance <= self.threat.epsilon
        return ops.stop_gradient(choose(found, nearest, images))

    def _move(self, current, images, normal, value):
        """Returns the next image, beyond the boundary at which the linearised `value`, of gradient `normal`, is 0."""
        axes = tuple(range(1, len(images.shape)))
        value_at_images = value + ops.sum(normal * (images - current), axis=axes)
        from_current = offset_to_hyperplane(self.threat, current, normal, value)
        from_images = offset_to_hyperplane(self.threat, images, normal, value_at_images)
        current_step, image_step = (
            ops.maximum(self.threat.distance(images + offset, images), SMALLEST_STEP)
            for offset in (from_current, from_images)
        )
        share = per_example(ops.minimum(current_step / (current_step + image_step), ALPHA_MAX), images)
        moved = (1 - share) * (current + OVERSHOOT * from_current) + share * (images + OVERSHOOT * from_images)
        return ops.clip(moved, 0.0, 1.0)


def offset_to_hyperplane(threat, images, normal, value):
    """Computes the smallest offset, in the threat's norm, at which a linear function is 0 inside [0, 1].

    The offset moves each value of the image along or against the sign of the normal by min(t * speed, slack): speed is
    1 in Linf and |normal| in L2, slack is the distance to the limit of [0, 1]. The equation for t is concave and
    piecewise linear; Newton's method from below solves it exactly in a few iterations. If the function does not reach 0
    inside [0, 1], the offset leads to the corner where it is closest to 0.

    Args:
        threat: `Linf` or `L2`.
        images: [batch, ...] in [0, 1].
        normal: [batch, ...] the gradient of the function.
        value: [batch] the value of the function at the images.

    Returns:
        [batch, ...] offsets.
    """
    axes = tuple(range(1, len(images.shape)))
    direction = -ops.sign(per_example(value, images)) * ops.sign(normal)
    weight = ops.abs(normal)
    slack = ops.where(direction > 0, 1.0 - images, images)
    is_l2 = isinstance(threat, L2)
    needed, largest_change, slope = ops.abs(value), weight * slack, weight * weight if is_l2 else weight

    def shift(t):
        return per_example(t, images) * weight if is_l2 else per_example(t, images)

    def newton(count, t, _):
        at_limit = ops.cast(shift(t) >= slack, "float32")
        changed = ops.sum(at_limit * largest_change, axis=axes)
        free_slope = ops.sum((1.0 - at_limit) * slope, axis=axes)
        solution = (needed - changed) / ops.where(free_slope > 0, free_slope, 1.0)
        larger = ops.maximum(ops.where(free_slope > 0, solution, float("inf")), t)
        return count + 1, larger, ops.any(larger > t)

    state = (0, ops.zeros_like(needed), True)
    _, t, _ = ops.while_loop(lambda *state: state[-1], newton, state, maximum_iterations=MAX_ITERATIONS)
    # An infinite t times a speed of 0 is NaN; the direction is 0 there, so any finite value will do.
    shifted = ops.where(weight > 0, shift(t), slack) if is_l2 else shift(t)
    return direction * ops.minimum(shifted, slack)
