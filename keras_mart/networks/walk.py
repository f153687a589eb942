"""The layers with weights of a network in PyTorch's order, with the order of their input features."""

from typing import NamedTuple

import keras
import numpy as np

from keras_mart import folding


class WeightedLayer(NamedTuple):
    """A layer with weights.

    Attributes:
        layer: a `keras.layers.Layer`.
        positions: for each value of its input, its position in PyTorch's [channels, height, width] order, if a
            flattening or another operation has moved the values; `None` if the orders correspond.
    """

    layer: keras.layers.Layer
    positions: np.ndarray | None


def layers_of(network):
    """Returns a `WeightedLayer` for each layer with weights, in the usual order of PyTorch code.

    That is the order of the graph. Where an operation joins branches, the longest comes first: the main branch of a
    block before its shortcut.

    Raises:
        ValueError: the network is not functional, or a layer is called on features in two different orders.
    """
    found = []
    _walk(network, None, found)
    layers = {}
    for each in found:
        first = layers.setdefault(id(each.layer), each)
        if not _are_equal(first.positions, each.positions):
            raise ValueError(
                f"A layer must always be called on features in the same order. Received: {each.layer!r} with two orders"
            )
    return list(layers.values())


def _walk(network, positions, found):
    """Appends the layers of a network to `found`; returns the positions of its output."""
    seen, stand_ins = folding.stand_ins_of(_graph(network))
    known = {id(seen.inputs[0]): positions}
    for stand_in, inputs, output in _depth_first(stand_ins, seen.outputs[0]):
        operation, given = stand_in.operation, [known.get(id(each)) for each in inputs]
        if isinstance(operation, keras.Model):
            known[id(output)] = _walk(operation, given[0], found)
        elif getattr(operation, "weights", ()):
            found.append(WeightedLayer(operation, given[0]))
            known[id(output)] = given[0] if isinstance(operation, keras.layers.BatchNormalization) else None
        else:
            known[id(output)] = _output_positions(stand_in, inputs, given, output)
    return known[id(seen.outputs[0])]


def _graph(network):
    graph = folding.graph_of(network)
    if graph is None:
        raise ValueError(
            "To exchange weights with PyTorch, a network must be functional or Sequential with one input and output. "
            f"Received: {network!r}"
        )
    return graph


def _depth_first(stand_ins, output):
    """Returns (stand-in, inputs, output) of each call, after the calls it depends on, the longest branch first."""
    calls, depth = {}, {}
    for stand_in in stand_ins:
        for args, kwargs, made in stand_in.calls:
            inputs = [each for each in keras.tree.flatten((args, kwargs)) if isinstance(each, keras.KerasTensor)]
            for each in keras.tree.flatten(made):
                calls[id(each)] = stand_in, inputs, each
                before = max((depth.get(id(one), 0) for one in inputs), default=0)
                depth[id(each)] = before + _length(stand_in.operation)
    found, begun, waiting = [], set(), [(output, False)]
    while waiting:
        tensor, is_done = waiting.pop()
        if is_done:
            found.append(calls[id(tensor)])
        elif id(tensor) in calls and id(tensor) not in begun:
            begun.add(id(tensor))
            inputs = sorted(reversed(calls[id(tensor)][1]), key=lambda each: depth.get(id(each), 0))
            waiting += [(tensor, True), *((each, False) for each in inputs)]
    return found


def _length(operation):
    """Returns the number of operations in an operation, which may be a model."""
    if isinstance(operation, keras.Model):
        return sum(map(_length, _graph(operation).operations))
    return 0 if isinstance(operation, keras.layers.InputLayer) else 1


def _output_positions(stand_in, inputs, given, output):
    """Returns the positions of the output of an operation without weights.

    The operation is called on the positions themselves. If it only rearranges them into another shape, its result is
    the positions of the output. If it computes new values in place, the positions stay the same.
    """
    if not inputs or None in inputs[0].shape[1:]:
        return None
    before = _default_positions(inputs[0].shape[1:]) if given[0] is None else given[0]
    after, keeps_shape = _permuted(stand_in, before), output.shape == inputs[0].shape
    all_equal = all(_are_equal(each, given[0]) for each in given)
    if after is not None and all_equal and not keeps_shape:
        return None if np.array_equal(after, _default_positions(after.shape)) else after
    if after is None or np.array_equal(after, before):
        if all(each is None for each in given) or (all_equal and keeps_shape):
            return given[0]
    raise ValueError(
        "Values that a flattening or a permutation has moved must keep their positions until the next layer with "
        f"weights, and no other operation may move values. Received: {stand_in.operation!r}"
    )


def _permuted(stand_in, positions):
    """Returns the positions after an operation that only moves values, `None` if it does anything else."""
    args, kwargs, _ = stand_in.calls[0]
    # Positive integers are neither rounded in any precision nor changed by a ReLU.
    numbers = keras.ops.convert_to_tensor(positions[None] + 1, "int32")
    args, kwargs = keras.tree.map_structure(
        lambda each: numbers if isinstance(each, keras.KerasTensor) else each, (args, kwargs)
    )
    try:
        found = np.asarray(stand_in.operation(*args, **kwargs))[0] - 1
    except Exception:  # an operation that does not take these integers does not only move values
        return None
    is_permutation = found.size == positions.size and np.array_equal(np.sort(found, None), np.arange(positions.size))
    return found.astype("int64") if is_permutation else None


def _default_positions(shape):
    """Returns the positions of values that are in Keras's order, which for images is [height, width, channels]."""
    numbers = np.arange(int(np.prod(shape)))
    if len(shape) != 3:
        return numbers.reshape(shape)
    height, width, channels = shape
    return numbers.reshape(channels, height, width).transpose(1, 2, 0)


def _are_equal(one, other):
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
