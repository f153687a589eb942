"""Gradients of objectives with respect to images, kept alive in float16; and loops that XLA knows the turns of."""

import tensorflow as tf
from keras import ops

from keras_mart.threats import choose

# Where the exponent of a float32 begins, what it is at 1, and the largest of a finite number.
EXPONENT_BIT, BIAS, LARGEST_EXPONENT = 23, 127, 254


def gradient_of(objective, images, samples=1):
    """Computes an objective's gradient, an example's being 0 where it is not finite.

    Args:
        objective: maps [batch, ...] images to a pair: [batch] float32 values to differentiate, and [batch]
            booleans that are handed through (whatever else is to be known of the same forward pass).
        images: [batch, ...].
        samples: the gradient is the mean of this many, for networks that answer at random.

    Returns:
        ([batch, ...] gradient, [batch] values, [batch] the booleans), the last two of the last sample.
    """
    if samples == 1:
        gradient, values, marks = _gradient_of(objective, images)
    else:

        def add(number, total, *_):
            gradient, values, marks = _gradient_of(objective, images)
            return total + gradient / samples, values, marks

        nothing = ops.zeros((ops.shape(images)[0],))
        gradient, values, marks = loop(add, (ops.zeros_like(images), nothing, ops.cast(nothing, "bool")), samples)
    finite = ops.all(ops.isfinite(gradient), axis=tuple(range(1, len(images.shape))))
    return choose(finite, gradient, ops.zeros_like(gradient)), values, marks


def _gradient_of(objective, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        values, marks = objective(images)
    gradient = tape.gradient(values, images, unconnected_gradients="zero")
    # A network from a SavedModel gives its gradient no shape, which loops need.
    return tf.ensure_shape(gradient, images.shape), ops.stop_gradient(values), marks


def values_only(objective):
    """An objective of values alone as `gradient_of` takes it; its booleans are all false."""

    def marked(images):
        values = objective(images)
        return values, ops.zeros_like(values, "bool")

    return marked


@tf.custom_gradient
def with_scaled_gradient(logits):
    """Returns [batch, classes] float32 logits, whose gradient float16 can carry back through the network.

    The gradient that comes back is multiplied, for each example, by the power of two that brings its largest entry
    to [1, 2). That of a confident example would otherwise underflow in half precision. As a direction it stays exactly
    what it is, but the gradient of one objective that asks for logits several times is no longer the sum of its parts.
    """

    def gradient(upstream):
        largest = ops.max(ops.abs(upstream), axis=-1, keepdims=True)
        exponent = tf.bitwise.right_shift(tf.bitcast(largest, tf.int32), EXPONENT_BIT)
        inverse = tf.bitwise.left_shift(2 * BIAS - ops.minimum(exponent, LARGEST_EXPONENT - 1), EXPONENT_BIT)
        return upstream * tf.bitcast(inverse, tf.float32)

    return tf.identity(logits), gradient


def loop(body, state, times):
    """Returns the state after passes of the body, which maps (number of the pass, *state) to the next state.

    XLA knows the number of turns where `times` is a Python integer: a GPU then runs them without asking the host.
    """
    return ops.fori_loop(0, times, lambda number, state: tuple(body(number, *state)), tuple(state))
