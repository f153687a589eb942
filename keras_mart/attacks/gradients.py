"""Gradients of objectives with respect to images, without underflow in float16, and loops of fixed length for XLA."""

import tensorflow as tf
from keras import ops

from keras_mart.threats import choose

# Of a float32: the first bit of its exponent, the exponent of 1, and the largest exponent of a finite number.
EXPONENT_BIT, BIAS, LARGEST_EXPONENT = 23, 127, 254


def gradient_of(objective, images, samples=1):
    """Computes the gradient of an objective; that of an example is 0 if it is not finite.

    Args:
        objective: maps [batch, ...] images to a pair: [batch] float32 values to differentiate, and [batch] flags, other
            booleans from the same forward pass.
        images: [batch, ...].
        samples: the gradient is the mean of this many, for networks with random outputs.

    Returns:
        ([batch, ...] gradient, [batch] values, [batch] flags), the last two of the last sample.
    """
    if samples == 1:
        gradient, values, flags = _gradient_of(objective, images)
    else:

        def add(number, total, *_):
            gradient, values, flags = _gradient_of(objective, images)
            return total + gradient / samples, values, flags

        zeros = ops.zeros((ops.shape(images)[0],))
        gradient, values, flags = loop(add, (ops.zeros_like(images), zeros, ops.cast(zeros, "bool")), samples)
    finite = ops.all(ops.isfinite(gradient), axis=tuple(range(1, len(images.shape))))
    return choose(finite, gradient, ops.zeros_like(gradient)), values, flags


def _gradient_of(objective, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        values, flags = objective(images)
    gradient = tape.gradient(values, images, unconnected_gradients="zero")
    # The gradient of a network from a SavedModel has no static shape, which loops need.
    return tf.ensure_shape(gradient, images.shape), ops.stop_gradient(values), flags


def values_only(objective):
    """Adapts an objective that returns only values to `gradient_of`; the flags are all false."""

    def with_flags(images):
        values = objective(images)
        return values, ops.zeros_like(values, "bool")

    return with_flags


@tf.custom_gradient
def with_scaled_gradient(logits):
    """Returns [batch, classes] float32 logits unchanged, with a gradient scaled to avoid underflow in float16.

    The gradient is multiplied, for each example, by the power of two that brings its largest entry to [1, 2); that of
    a confident example would otherwise underflow in half precision. Its direction stays exactly the same, but the
    gradient of an objective that computes logits several times is no longer the sum of its parts.
    """

    def gradient(upstream):
        largest = ops.max(ops.abs(upstream), axis=-1, keepdims=True)
        exponent = tf.bitwise.right_shift(tf.bitcast(largest, tf.int32), EXPONENT_BIT)
        inverse = tf.bitwise.left_shift(2 * BIAS - ops.minimum(exponent, LARGEST_EXPONENT - 1), EXPONENT_BIT)
        return upstream * tf.bitcast(inverse, tf.float32)

    return tf.identity(logits), gradient


def loop(body, state, times):
    """Returns the state after `times` iterations of the body, which maps (iteration, *state) to the next state.

    If `times` is a Python integer, XLA knows the number of iterations, and a GPU runs them without the host.
    """
    return ops.fori_loop(0, times, lambda number, state: tuple(body(number, *state)), tuple(state))
