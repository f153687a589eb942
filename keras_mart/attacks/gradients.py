"""Gradients of objectives with respect to images, kept alive where a number format would lose them."""

import tensorflow as tf
from keras import ops

from keras_mart.threats import choose

# A scaled gradient whose largest entry is under FAINT gets a larger scale the next time, one under LOST at once.
FAINT, LOST = 2.0**-4, 2.0**-14
FIRST_SCALE, LARGEST_SCALE = 2.0**10, 2.0**100
FAINT_FACTOR, LOST_FACTOR, OVERFLOW_FACTOR = 2.0**4, 2.0**20, 2.0**-8
# So many scales are tried for one gradient: enough to come from the first to the largest.
ATTEMPTS = 6


def first_scale(images):
    """[batch] the scale to begin `scaled_gradient` with."""
    return ops.full((ops.shape(images)[0],), FIRST_SCALE)


def scaled_gradient(objective, images, scale, samples=1):
    """An objective's gradient for use as a direction: each example's is multiplied by a power of two.

    The gradient with respect to the logits of a confident example underflows in float16. Multiplying it at the
    top of the backward pass, by a factor that each example adapts as the attack goes on, keeps it alive; powers of
    two leave the direction exact. Where a gradient is lost all the same, nearly to zero or to infinity, it is computed
    again with another factor; what is lost for good is zero.

    Args:
        objective: maps [batch, ...] images to a pair: [batch] float32 values to differentiate, and [batch]
            booleans that are handed through (whatever else is to be known of the same forward pass).
        images: [batch, ...].
        scale: [batch] positive powers of two.
        samples: the gradient is the mean of so many, for networks that answer at random.

    Returns:
        ([batch, ...] scaled gradient, [batch] scale for the next call, [batch] values, [batch] the booleans).
    """

    def attempt(count, _, scale, *__):
        gradient, values, marks = _mean_gradient(objective, images, scale, samples)
        axes = tuple(range(1, len(images.shape)))
        size = ops.max(ops.abs(gradient), axis=axes)
        finite = ops.all(ops.isfinite(gradient), axis=axes)
        again = ops.any(ops.logical_or(~finite, ops.logical_and(size < LOST, scale < LARGEST_SCALE)))
        factor = ops.where(size < LOST, LOST_FACTOR, ops.where(size < FAINT, FAINT_FACTOR, 1.0))
        scale = ops.minimum(scale * ops.where(finite, factor, OVERFLOW_FACTOR), LARGEST_SCALE)
        kept = choose(finite, gradient, 0.0)
        return count + 1, kept, scale, values, marks, again

    nothing = ops.zeros_like(scale)
    state = (0, ops.zeros_like(images), scale, nothing, ops.cast(nothing, "bool"), True)
    _, gradient, scale, values, marks, _ = ops.while_loop(
        lambda *state: state[-1], attempt, state, maximum_iterations=ATTEMPTS
    )
    return gradient, scale, values, marks


def unmarked(objective):
    """An objective of values alone as `scaled_gradient` takes it; its booleans are all false."""

    def marked(images):
        values = objective(images)
        return values, ops.zeros_like(values, "bool")

    return marked


def _mean_gradient(objective, images, scale, samples):
    if samples == 1:
        return gradient_of(objective, images, scale)

    def add(count, total, *_):
        gradient, values, marks = gradient_of(objective, images, scale)
        return count + 1, total + gradient / samples, values, marks

    nothing = ops.zeros_like(scale)
    state = (0, ops.zeros_like(images), nothing, ops.cast(nothing, "bool"))
    return loop(add, state, samples)[1:]


def gradient_of(objective, images, scale=None):
    """(gradient, values, marks) of an objective as `scaled_gradient` takes it, times the scale if one is given."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        values, marks = objective(images)
    gradient = tape.gradient(values, images, output_gradients=scale, unconnected_gradients="zero")
    # A network from a SavedModel gives its gradient no shape, which loops need.
    return tf.ensure_shape(gradient, images.shape), ops.stop_gradient(values), marks


def loop(body, state, times):
    """The state after so many passes of the body; the state's first entry counts them."""
    return ops.while_loop(lambda count, *_: count < times, body, state, maximum_iterations=times)
