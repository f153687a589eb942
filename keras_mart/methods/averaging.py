"""The moving average of a network's weights, kept as a second network."""

import contextlib
import pathlib
import tempfile

import keras
from keras import ops

from keras_mart import distribution, memory

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


def copy_of(network):
    """A network of the same layers and weights that is never trained; `None` for one that is not built yet.

    It is saved and loaded: so it has all that layers keep, also what they derive from their weights (Normalization) or
    keep beside them (vocabularies).

    Raises:
        ValueError: the network cannot be made again from its config.
    """
    kinds = [type(layer) for layer in (network, *memory.layers(network))]
    classes = {kind.__name__: kind for kind in kinds if not kind.__module__.startswith("keras.")}
    try:
        with tempfile.TemporaryDirectory() as folder, keras.saving.custom_object_scope(classes):
            if not network.built:  # its copy is made when it is; whether there can be one is seen now
                type(network).from_config(network.get_config())
                return None
            if _fresh:
                copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
            else:
                file = pathlib.Path(folder) / "network.keras"
                keras.saving.save_model(network, file)
                copy = keras.saving.load_model(file, compile=False)
        if [type(layer) for layer in (copy, *memory.layers(copy))] != kinds:
            raise ValueError("Keras finds other classes of the same names")
        copy.set_weights(network.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "`weight_average` keeps a second network, which Keras must be able to save and load: the first must give "
            f"its `get_config`. Received: {network} ({error})"
        ) from error
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


def update(network, average, decay, step):
    """Moves the average towards the network, inside a replica.

    Args:
        network: what is trained.
        average: its `copy_of`.
        decay: in (0, 1); that of step n, from 0, is n / (n + 9) where this is less.
        step: scalar integer, n.
    """
    step = ops.cast(step, "float32")
    share = 1 - ops.minimum(decay, step / (step + WARM_UP))

    def towards(now, mean):  # a counter is taken over; seeds of Dropout are no weights
        return mean + ops.cast(share, mean.dtype) * (now - mean) if "float" in mean.dtype else ops.copy(now)

    moved = [towards(now, mean) for now, mean in zip(network.weights, average.weights, strict=True)]
    distribution.assign(average.weights, moved)
