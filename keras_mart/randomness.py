"""Stateless random numbers, from one seed for a whole batch or from one seed for each example.

A seed is [2] integers, as for TensorFlow's stateless random numbers, or [batch, 2] integers: a seed that all examples
share, and the number of the example. Numbers drawn from the latter do not depend on the other examples in the batch.
For a part of a batch, a seed is a `Rows`.
"""

import math
from typing import Any, NamedTuple

import tensorflow as tf
from keras import ops

# An integer hash of 32 bits with little bias (Wellons, "Prospecting for hash functions", lowbias32), and the step of a
# Weyl sequence, the golden ratio's share of 2**32.
FACTORS, SHIFTS, WEYL = (0x7FEB352D, 0x846CA68B), (16, 15, 16), 0x9E3779B9
# A float32 holds 24 bits.
BITS, DROPPED = 24, 8


class Rows(NamedTuple):
    """A seed for some rows of a batch, which get the same numbers as in the whole batch.

    seed: [2] integers.
    size: number of examples in the whole batch.
    rows: [part] int32.
    """

    seed: Any
    size: Any
    rows: Any

    def gather(self, draw, shape, *limits):
        """Returns the rows of the numbers that `draw` draws for the whole batch; `shape` is that of the result."""
        return tf.gather(draw((self.size, *shape[1:]), self.seed, *limits), self.rows)


def example_seeds(seed, numbers):
    """Returns [batch, 2] seeds: a hash of a [2] seed, and the [batch] int32 numbers of the examples."""
    return ops.stack([ops.ones_like(numbers) * _combine(seed[0], seed[1]), numbers], axis=1)


def shared_seed(seed):
    """Returns the [2] seed for random numbers that all examples of a batch share."""
    if isinstance(seed, Rows):
        return seed.seed
    return seed if ops.ndim(seed) == 1 else ops.stack([seed[0, 0], 0])


def fold_in(seed, number):
    """Returns a seed of the same shape, different for each number, an integer or an integer tensor."""
    if isinstance(seed, Rows):
        return seed._replace(seed=fold_in(seed.seed, number))
    if ops.ndim(seed) == 1:
        return tf.random.fold_in(seed, number)
    return ops.stack([_combine(seed[:, 0], number), seed[:, 1]], axis=1)


def split(seed, count):
    """Returns a list of `count` new seeds of the same shape."""
    if isinstance(seed, Rows):
        return [seed._replace(seed=each) for each in split(seed.seed, count)]
    if ops.ndim(seed) == 1:
        return tf.unstack(tf.random.split(seed, count))
    return [fold_in(seed, number) for number in range(count)]


def uniform(shape, seed, low=0.0, high=1.0):
    """Returns float32 values of a shape, drawn uniformly from [low, high).

    Args:
        shape: with one seed for each example, the first axis is the batch.
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
    symmetric = 2.0 * _unit(shape, seed) + 2.0**-BITS - 1.0  # in (-1, 1)
    return math.sqrt(2.0) * tf.math.erfinv(symmetric)


def _unit(shape, seeds):
    """Returns values in [0, 1), multiples of 2**-24: a hash of seed, example number and position in the example."""
    key = tf.bitcast(_combine(seeds[:, 0], seeds[:, 1]), tf.uint32)[:, None]
    position = tf.bitcast(tf.range(math.prod(shape[1:])), tf.uint32) * WEYL
    bits = _hash(_hash(position + key) + _hash(key))
    kept = tf.bitcast(tf.bitwise.right_shift(bits, DROPPED), tf.int32)
    return tf.reshape(tf.cast(kept, tf.float32) * 2.0**-BITS, shape)


def _combine(one, other):
    """Hashes two int32 into one that changes if either does."""
    one, other = (tf.bitcast(ops.cast(each, "int32"), tf.uint32) for each in (one, other))
    return tf.bitcast(_hash(tf.bitwise.bitwise_xor(_hash(one), other)), tf.int32)


def _hash(values):
    for shift, factor in zip(SHIFTS, (*FACTORS, 1), strict=True):
        values = tf.bitwise.bitwise_xor(values, tf.bitwise.right_shift(values, shift)) * factor
    return values
