"""The moving average of a network's weights, kept as a second network."""

import contextlib

from keras import ops

from keras_mart import distribution, memory
from keras_mart.copying import copy_of

# TensorFlow's ExponentialMovingAverage with `num_updates` has (1 + n) / (10 + n); here the very first is a copy.
WARM_UP = 9
# Whether networks come from their config only: they have no state yet that a copy would lack.
_fresh = False


@contextlib.contextmanager
def of_fresh_networks():
    """Copies that are made inside are of networks as their configs describe them: a file to be loaded has the rest."""
    global _fresh
    _fresh = True
    try:
        yield
    finally:
        _fresh = False


def frozen_copy(network, reason="`weight_average` keeps a second network."):
    """A copy of a network that is never trained; `None` for one that is not built yet.

    Args:
        network: a Keras model.
        reason: why there is one, for the error.

    Raises:
        ValueError: the network cannot be made again from its config.
    """
    try:
        copy = copy_of(network, from_config=_fresh)
    except ValueError as error:
        raise ValueError(f"{reason} {error}") from error
    if copy is not None:
        freeze(copy)
    return copy


def freeze(network):
    """Freezes a network and every layer of it: a network that is frozen already hands nothing on to its layers."""
    for each in (network, *memory.layers(network)):
        each.trainable = False


def adapt(network, copy):
    """Gives the copy's layers what `adapt` has given the network's, since the copy was made."""
    for layer, copied in zip(memory.layers(network), memory.layers(copy), strict=True):
        if hasattr(layer, "adapt") and layer.built:
            store = {}
            layer.save_own_variables(store)
            copied.load_own_variables(store)


def update(network, average, decay, step, start=0):
    """Moves the average towards the network, inside a replica.

    Args:
        network: what is trained.
        average: its `frozen_copy`.
        decay: in (0, 1); that of step n, from 0, is n / (n + 9) where this is less.
        step: scalar integer, the number of the training step.
        start: scalar integer, the step that is n = 0; before it the average is a copy.
    """
    step = ops.cast(ops.maximum(step - start, 0), "float32")
    share = 1 - ops.minimum(decay, step / (step + WARM_UP))

    def towards(now, mean):  # a counter is taken over; seeds of Dropout are no weights
        return mean + ops.cast(share, mean.dtype) * (now - mean) if "float" in mean.dtype else ops.copy(now)

    moved = [towards(now, mean) for now, mean in zip(network.weights, average.weights, strict=True)]
    distribution.assign(average.weights, moved)
