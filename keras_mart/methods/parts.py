"""A batch in parts, one after the other: a step then needs the memory of one part."""

import tensorflow as tf
from keras import ops

from keras_mart.methods.batch import Batch, Outputs, Pass
from keras_mart.methods.scope import SEED
from keras_mart.randomness import WEYL, Rows


def in_turn(compute, count, network, pairs=False):
    """Returns a function like `compute` that takes the batch in `count` parts; `compute` itself for one part.

    Of the parts it makes what `distribution.combined` makes of replicas: means and float states are weighted by the
    numbers of real examples. Other states are the first part's. All parts have one size: the last examples, once more
    and not real, fill up what is missing.

    Args:
        compute: takes a `Batch`, a seed, what was attacked or `None`, moves of weights, and pairs of a variable and
            what to read in its place.
        count: number of parts.
        network: what is random in it, such as Dropout, draws other numbers for each part.
        pairs: whether the neighbours (0, 1), (2, 3), ... stay in one part.
    """
    if count == 1:
        return compute
    seeds = [each for each in network.variables if each.name == SEED]

    def whole(batch, seed, attacked, moves):
        def part(number):
            own, rows = _part(batch, number, count, pairs)
            drawn = Rows(seed, _size(batch), rows)
            found = compute(own, drawn, attacked and _taken(attacked, rows), moves, _drawing_others(seeds, number))
            share = tf.reduce_sum(own.real) / tf.maximum(tf.reduce_sum(batch.real), 1.0)
            return share, *_divided(found)

        means, examples = _joined(part, count)
        examples = {name: each[: _size(batch)] for name, each in examples.items()}
        attacked = examples.get("images"), examples["epsilon"]
        outputs = Outputs(examples["natural"], examples.get("adversarial"), attacked[1], batch.index)
        return Pass(attacked, examples["values"], outputs, **means)

    return whole


def _size(batch):
    """The number of examples, which XLA must know where it is used: it is asked for there."""
    return ops.shape(batch.labels)[0]


def _part(batch, number, count, pairs):
    """A part of a `Batch`, and [part] the rows that it has of it."""
    share = -(-_size(batch) // count)
    share = share + share % 2 if pairs else share
    places = number * share + tf.range(share)
    # Mirrored at the end: an odd one out is paired with itself, from which it does not differ.
    rows = tf.minimum(places, tf.maximum(2 * _size(batch) - 1 - places, 0))
    own = Batch(*_taken(batch._replace(ranges=None), rows))
    return own._replace(real=tf.where(places < _size(batch), own.real, 0.0)), rows


def _taken(tensors, rows):
    return [None if each is None else tf.gather(each, rows) for each in tensors]


def _drawing_others(seeds, number):
    """Pairs of a `SeedGenerator`'s variable, [2], and what a part reads in its place: other numbers follow from it."""
    return [(each, each + tf.stack([tf.cast(number, each.dtype) * WEYL, 0])) for each in seeds]


def _divided(found):
    """The means of a `Pass`, and by name what it has for each example."""
    examples = {
        "images": found.attacked[0],
        "epsilon": found.attacked[1] + tf.zeros_like(found.values),
        "values": found.values,
        "natural": found.outputs.natural,
        "adversarial": found.outputs.adversarial,
    }
    examples = {name: each for name, each in examples.items() if each is not None}
    return {"terms": found.terms, "gradients": found.gradients, "states": found.states}, examples


def _joined(part, count):
    """The weighted means of all parts, and their examples in a row."""
    specs, number = None, tf.TensorSpec([], "int32")
    if tf.inside_function():  # what the loop carries must be known before: the part is traced once, and called in it
        part = tf.function(part, autograph=False)
        specs = part.get_concrete_function(number).structured_outputs
    _, means, examples = specs or part(tf.constant(0))

    def turn(number, means, arrays):
        share, found, examples = part(number)

        def added(before, new):
            if new.dtype.is_floating:
                return before + tf.cast(share, new.dtype) * new
            return tf.where(number > 0, before, new)

        arrays = {name: array.write(number, examples[name]) for name, array in arrays.items()}
        return number + 1, tf.nest.map_structure(added, means, found), arrays

    zeros = tf.nest.map_structure(lambda each: tf.zeros(each.shape, each.dtype), means)
    arrays = {name: tf.TensorArray(each.dtype, count, element_shape=each.shape) for name, each in examples.items()}
    state = tf.constant(0), zeros, arrays
    # One turn at a time: TensorFlow would begin several.
    _, means, arrays = tf.while_loop(lambda number, *_: number < count, turn, state, parallel_iterations=1)
    return means, {name: array.concat() for name, array in arrays.items()}
