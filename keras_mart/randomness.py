"""Random numbers from seeds: of a whole batch from one, or of each example from its own, wherever it lies in a batch.

A seed is [2] integers, as TensorFlow's stateless random numbers take it, or [batch, 2] integers: a seed that all
examples share, and the number of the example. What is drawn from the latter does not depend on what else is in the
batch. Or it is a `Rows`, for a part of a batch.
"""

import math
from typing import NamedTuple

import tensorflow as tf
from keras import ops

# An integer hash of 32 bits with little bias (Wellons, "Prospecting for hash functions", lowbias32), and the step of a
# Weyl sequence, the golden ratio's share of 2**32.
FACTORS, SHIFTS, WEYL = (0x7FEB352D, 0x846CA68B), (16, 15, 16), 0x9E3779B9
# A float32 holds 24 bits.
BITS, DROPPED = 24, 8


class Rows(NamedTuple):
    """A seed for some rows of a batch: they get the numbers that a [2] seed draws for them in the whole batch.

    seed: [2] integers.
    size: of the whole batch.
    rows: [part] int32.
    """

    seed: object
    size: object
    rows: object

    def gather(self, draw, shape, *limits):
        """The rows of what `draw` draws for the whole batch; `shape` is that of the rows."""
        return tf.gather(draw((self.size, *shape[1:]), self.seed, *limits), self.rows)


def example_seeds(seed, numbers):
    """Returns [batch, 2] seeds: what a [2] seed comes to, and the [batch] int32 numbers of the examples."""
    return ops.stack([ops.ones_like(numbers) * _combine(seed[0], seed[1]), numbers], axis=1)


def shared_seed(seed):
    """Returns the [2] seed of what is alike for all examples of a batch."""
    if isinstance(seed, Rows):
        return seed.seed
    return seed if ops.ndim(seed) == 1 else ops.stack([seed[0, 0], 0])


def fold_in(seed, number):
    """Returns another seed of the same shape for each number, an integer or an integer tensor."""
    if isinstance(seed, Rows):
        return seed._replace(seed=fold_in(seed.seed, number))
    if ops.ndim(seed) == 1:
        return tf.random.fold_in(seed, number)
    return ops.stack([_combine(seed[:, 0], number), seed[:, 1]], axis=1)


def split(seed, count):
    """Returns a list of so many other seeds of the same shape."""
    if isinstance(seed, Rows):
        return [seed._replace(seed=each) for each in split(seed.seed, count)]
    if ops.ndim(seed) == 1:
        return tf.unstack(tf.random.split(seed, count))
    return [fold_in(seed, number) for number in range(count)]


def uniform(shape, seed, low=0.0, high=1.0):
    """Returns float32 values of a shape, drawn uniformly from [low, high).

    Args:
        shape: its first axis is that of the examples where there is a seed for each.
        seed: [2] or [batch, 2] integers, or `Rows`.
    """
    if isinstance(seed, Rows):
        return seed.gather(uniform, shape, low, high)
    if ops.ndim(seed) == 1:
        return tf.random.stateless_uniform(shape, seed, low, high)
    return low + (high - low) * _unit(shape, seed)


def normal(shape, seed):
    """Returns float32 values of the standard normal distribution; the arguments are those of `uniform`."""
    if isinstance(seed, Rows):
        return seed.gather(normal, shape)
    if ops.ndim(seed) == 1:
        return tf.random.stateless_normal(shape, seed)
    between = 2.0 * _unit(shape, seed) + 2.0**-BITS - 1.0  # in (-1, 1), symmetric round 0
    return math.sqrt(2.0) * tf.math.erfinv(between)


def _unit(shape, seeds):
    """Values of a shape in [0, 1), multiples of 2**-24: a hash of the seed, the example's number and the place."""
    key = tf.bitcast(_combine(seeds[:, 0], seeds[:, 1]), tf.uint32)[:, None]
    place = tf.bitcast(tf.range(math.prod(shape[1:])), tf.uint32) * WEYL
    bits = _hash(_hash(place + key) + _hash(key))
    kept = tf.bitcast(tf.bitwise.right_shift(bits, DROPPED), tf.int32)
    return tf.reshape(tf.cast(kept, tf.float32) * 2.0**-BITS, shape)


def _combine(one, other):
    """An int32 that differs where one of two int32 does."""
    one, other = (tf.bitcast(ops.cast(each, "int32"), tf.uint32) for each in (one, other))
    return tf.bitcast(_hash(tf.bitwise.bitwise_xor(_hash(one), other)), tf.int32)


def _hash(values):
    for shift, factor in zip(SHIFTS, (*FACTORS, 1), strict=True):
        values = tf.bitwise.bitwise_xor(values, tf.bitwise.right_shift(values, shift)) * factor
    return values
