"""The moving average of a network's weights, kept as a second network."""

import contextlib

from keras import ops

from keras_mart import distribution, memory
from keras_mart.copying import copy_of

# TensorFlow's ExponentialMovingAverage with `num_updates` uses (1 + n) / (10 + n); here the first average is a copy.
WARM_UP = 9
# Whether copies may be made from the config only, because the weights are loaded from a file afterwards.
_config_only = False


@contextlib.contextmanager
def copies_from_config():
    """Context in which networks are copied from their configs only; a file that is loaded later has their weights."""
    global _config_only
    _config_only = True
    try:
        yield
    finally:
        _config_only = False


def frozen_copy(network, reason="`weight_average` keeps a second network."):
    """Returns a frozen copy of a network, or `None` if it is not built yet.

    Args:
        network: a Keras model.
        reason: why a copy is needed, for the error message.

    Raises:
        ValueError: the network cannot be created from its config.
    """
    try:
        copy = copy_of(network, from_config=_config_only)
    except ValueError as error:
        raise ValueError(f"{reason} {error}") from error
    if copy is not None:
        freeze(copy)
    return copy


def freeze(network):
    """Freezes a network and each of its layers; setting `trainable` of a frozen network would not reach its layers."""
    for each in (network, *memory.layers(network)):
        each.trainable = False


def copy_adapted_state(network, copy):
    """Copies the state that layers such as `keras.layers.Normalization` got from `adapt`."""
    for layer, copied in zip(memory.layers(network), memory.layers(copy), strict=True):
        if hasattr(layer, "adapt") and layer.built:
            store = {}
            layer.save_own_variables(store)
            copied.load_own_variables(store)


def update(network, average, decay, step, start=0):
    """Updates the moving average of the weights, inside a replica.

    Args:
        network: the trained network.
        average: its `frozen_copy`.
        decay: in (0, 1); step n, from 0, uses the smaller of this and n / (n + 9).
        step: scalar integer, the number of the training step.
        start: scalar integer, the step with n = 0; before it the average is a copy.
    """
    step = ops.cast(ops.maximum(step - start, 0), "float32")
    share = 1 - ops.minimum(decay, step / (step + WARM_UP))

    def updated(weight, mean):  # integers, such as counters, are copied
        return mean + ops.cast(share, mean.dtype) * (weight - mean) if "float" in mean.dtype else ops.copy(weight)

    values = [updated(weight, mean) for weight, mean in zip(network.weights, average.weights, strict=True)]
    distribution.assign(average.weights, values)
