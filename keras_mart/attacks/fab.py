"""FAB: the nearest adversarial image, by projections onto the linearised decision boundary."""

import dataclasses

import keras
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import base, gradients
from keras_mart.threats import L2, choose, per_example

# Constants of the official code: the largest share of the natural image in a step, how far a step goes beyond the
# boundary, and how much of the way an adversarial image keeps when it is drawn back to the natural one.
ALPHA_MAX, OVERSHOOT, BACKWARD = 0.1, 1.05, 0.9
SMALLEST_STEP = 1e-8  # keeps the share of the natural image defined where both projections stay in place
# Newton's method on the piecewise linear equation ends by itself, in fewer rounds than this.
MOST_ROUNDS = 100


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class FABT(base.Rounds):
    """Targeted FAB: minimises the distance of an adversarial image; one within epsilon counts.

    Each step linearises the boundary to the target class, projects the current and the natural image onto it inside
    [0, 1], and goes beyond a mixture of both; an adversarial image is kept if it is the nearest yet, and the search
    goes on from nine tenths of the way to it. The targets are the most likely wrong classes of the natural image,
    each tried on the examples that are still classified correctly. Where nothing within epsilon is found, the natural
    image is returned. Nothing here is random.

    Differences: none from the official code but that its projection sorts and bisects where ours uses Newton's
    method; with 2 or 3 classes it works unchanged.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of steps towards each target.
        targets: number of targets, at most; never more than there are wrong classes.

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
    def gradients(self):
        return self.steps

    def rounds(self, classes):
        return min(self.targets, classes - 1)

    def perturb(self, logits, images, labels, seed, number, candidates):
        target = base.ranked_class(logits(images), number + 1)

        def difference(current):
            return losses.logit_difference(labels, logits(current), target)

        def step(_, current, nearest, distance):
            normal, value, _ = gradients.gradient_of(gradients.values_only(difference), current)
            moved = self._move(current, images, normal, value)
            away = self.threat.distance(moved, images)
            fooled = ops.argmax(logits(moved), axis=-1) != labels
            nearer = ops.logical_and(fooled, away < distance)
            nearest = choose(nearer, moved, nearest)
            distance = ops.where(nearer, away, distance)
            drawn_back = images + (moved - images) * BACKWARD
            return choose(fooled, drawn_back, moved), nearest, distance

        nowhere = ops.full((ops.shape(images)[0],), float("inf"))
        _, nearest, distance = gradients.loop(step, (images, images, nowhere), self.steps)
        found = distance <= self.threat.epsilon
        return ops.stop_gradient(choose(found, nearest, images))

    def _move(self, current, images, normal, value):
        """The next image: beyond the boundary where `value`, linear with gradient `normal`, would be 0."""
        axes = tuple(range(1, len(images.shape)))
        value_at_images = value + ops.sum(normal * (images - current), axis=axes)
        from_current = offset_to_hyperplane(self.threat, current, normal, value)
        from_images = offset_to_hyperplane(self.threat, images, normal, value_at_images)
        near, far = (
            ops.maximum(self.threat.distance(images + each, images), SMALLEST_STEP)
            for each in (from_current, from_images)
        )
        share = per_example(ops.minimum(near / (near + far), ALPHA_MAX), images)
        moved = (1 - share) * (current + OVERSHOOT * from_current) + share * (images + OVERSHOOT * from_images)
        return ops.clip(moved, 0.0, 1.0)


def offset_to_hyperplane(threat, images, normal, value):
    """The smallest offset, in the threat's norm, that brings a linear function to 0 inside [0, 1].

    The offset shifts each value against the sign of its normal, by min(t * pace, room): pace 1 in Linf and |normal|
    in L2, room as far as [0, 1] goes. What remains is one equation for t, concave and piecewise linear, which Newton's
    method from below solves exactly in a few rounds. Where even the corner does not reach 0, it is the corner.

    Args:
        threat: `Linf` or `L2`.
        images: [batch, ...] in [0, 1].
        normal: [batch, ...] the function's gradient.
        value: [batch] the function's value at the images.

    Returns:
        [batch, ...] offsets.
    """
    axes = tuple(range(1, len(images.shape)))
    direction = -ops.sign(per_example(value, images)) * ops.sign(normal)
    weight = ops.abs(normal)
    room = ops.where(direction > 0, 1.0 - images, images)
    paced = isinstance(threat, L2)
    needed, gain, rate = ops.abs(value), weight * room, weight * weight if paced else weight

    def shift(reach):
        return per_example(reach, images) * weight if paced else per_example(reach, images)

    def newton(count, reach, _):
        full = ops.cast(shift(reach) >= room, "float32")
        gained = ops.sum(full * gain, axis=axes)
        slope = ops.sum((1.0 - full) * rate, axis=axes)
        further = ops.where(slope > 0, (needed - gained) / ops.where(slope > 0, slope, 1.0), float("inf"))
        further = ops.maximum(further, reach)
        return count + 1, further, ops.any(further > reach)

    state = (0, ops.zeros_like(needed), True)
    _, reach, _ = ops.while_loop(lambda *state: state[-1], newton, state, maximum_iterations=MOST_ROUNDS)
    # An infinite reach times a pace of 0 is no number; there the direction is 0, and any room will do.
    reached = ops.where(weight > 0, shift(reach), room) if paced else shift(reach)
    return direction * ops.minimum(reached, room)
