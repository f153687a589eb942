"""Processes a batch in parts, one after another, so that a step needs the memory of only one part."""

import tensorflow as tf
from keras import ops

from keras_mart.methods.batch import Batch, Outputs, Pass
from keras_mart.methods.scope import SEED
from keras_mart.randomness import WEYL, Rows


def in_parts(compute, count, network, pairs=False):
    """Returns a function like `compute` that processes the batch in `count` parts; `compute` itself for one part.

    Results are reduced over parts as `distribution.all_reduce` does over replicas: means and floating-point states are
    averaged, weighted by the numbers of real examples. Other states are the first part's. All parts have the same size:
    the last one is padded with the last examples, which are marked as not real.

    Args:
        compute: function of a `Batch`, a seed, the result of the attack or `None`, weight offsets, and pairs of a
            variable and the tensor to read in its place; returns a `Pass`.
        count: number of parts.
        network: a Keras model whose random layers, such as Dropout, must draw different numbers in each part.
        pairs: whether the neighbours (0, 1), (2, 3), ... must stay in the same part.
    """
    if count == 1:
        return compute
    seeds = [each for each in network.variables if each.name == SEED]

    def whole(batch, seed, attack_result, weight_offsets):
        def part(number):
            own, rows = _part(batch, number, count, pairs)
            own_seed, own_attack = Rows(seed, _size(batch), rows), attack_result and _gather_rows(attack_result, rows)
            result = compute(own, own_seed, own_attack, weight_offsets, _other_seeds(seeds, number))
            weight = tf.reduce_sum(own.real) / tf.maximum(tf.reduce_sum(batch.real), 1.0)
            return weight, *_means_and_examples(result)

        means, examples = _reduce(part, count)
        examples = {name: each[: _size(batch)] for name, each in examples.items()}
        attack_result = examples.get("images"), examples["epsilon"]
        outputs = Outputs(examples["natural"], examples.get("adversarial"), attack_result[1], batch.index)
        return Pass(attack_result, examples["values"], outputs, **means)

    return whole


def _size(batch):
    """Returns the number of examples. Computed at each use, so that XLA knows the value there."""
    return ops.shape(batch.labels)[0]


def _part(batch, number, count, pairs):
    """Returns a part of a `Batch`, and the [part] indices of its examples."""
    size = -(-_size(batch) // count)
    size = size + size % 2 if pairs else size
    positions = number * size + tf.range(size)
    # Padding mirrors the end of the batch: a last example without a partner is paired with itself, at distance 0.
    rows = tf.minimum(positions, tf.maximum(2 * _size(batch) - 1 - positions, 0))
    own = Batch(*_gather_rows(batch._replace(ranges=None), rows))
    return own._replace(real=tf.where(positions < _size(batch), own.real, 0.0)), rows


def _gather_rows(tensors, rows):
    return [None if each is None else tf.gather(each, rows) for each in tensors]


def _other_seeds(seeds, number):
    """Returns pairs of a `SeedGenerator`'s [2] variable and the seed that a part reads in its place."""
    return [(each, each + tf.stack([tf.cast(number, each.dtype) * WEYL, 0])) for each in seeds]


def _means_and_examples(result):
    """Splits a `Pass` into means and per-example tensors, both as dictionaries."""
    examples = {
        "images": result.attack_result[0],
        "epsilon": result.attack_result[1] + tf.zeros_like(result.values),
        "values": result.values,
        "natural": result.outputs.natural,
        "adversarial": result.outputs.adversarial,
    }
    examples = {name: each for name, each in examples.items() if each is not None}
    return {"terms": result.terms, "gradients": result.gradients, "states": result.states}, examples


def _reduce(part, count):
    """Returns the weighted means of all parts, and their concatenated per-example tensors."""
    specs, number = None, tf.TensorSpec([], "int32")
    if tf.inside_function():  # traced before the loop, which must know the shapes of its state
        part = tf.function(part, autograph=False)
        specs = part.get_concrete_function(number).structured_outputs
    _, means, examples = specs or part(tf.constant(0))

    def turn(number, means, arrays):
        weight, values, examples = part(number)

        def added(before, new):
            if new.dtype.is_floating:
                return before + tf.cast(weight, new.dtype) * new
            return tf.where(number > 0, before, new)

        arrays = {name: array.write(number, examples[name]) for name, array in arrays.items()}
        return number + 1, tf.nest.map_structure(added, means, values), arrays

    zeros = tf.nest.map_structure(lambda each: tf.zeros(each.shape, each.dtype), means)
    arrays = {name: tf.TensorArray(each.dtype, count, element_shape=each.shape) for name, each in examples.items()}
    state = tf.constant(0), zeros, arrays
    # By default TensorFlow may run several iterations at once, with the memory of several parts.
    _, means, arrays = tf.while_loop(lambda number, *_: number < count, turn, state, parallel_iterations=1)
    return means, {name: array.concat() for name, array in arrays.items()}
