"""Copies of networks."""

import pathlib
import tempfile

import keras

from keras_mart import memory


def copy_of(network, from_config=False):
    """Returns a copy of a network: same layers, weights and frozen layers; `None` if the network is not built yet.

    The network is saved and loaded, so that the copy has all state of its layers, also state derived from weights
    (Normalization) or kept beside them (vocabularies).

    Args:
        network: a Keras model.
        from_config: whether to copy only configuration and weights, for a network without other state.

    Raises:
        ValueError: the network cannot be created from its config.
    """
    kinds = [type(layer) for layer in (network, *memory.layers(network))]
    classes = {kind.__name__: kind for kind in kinds if not kind.__module__.startswith("keras.")}
    try:
        with tempfile.TemporaryDirectory() as folder, keras.saving.custom_object_scope(classes):
            if not network.built:  # it is copied once it is built; this checks now that it can be
                type(network).from_config(network.get_config())
                return None
            if from_config:
                copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
            else:
                file = pathlib.Path(folder) / "network.keras"
                keras.saving.save_model(network, file)
                copy = keras.saving.load_model(file, compile=False, safe_mode=False)  # written above
        if [type(layer) for layer in (copy, *memory.layers(copy))] != kinds:
            raise ValueError("Keras finds other classes of the same names")
        copy.set_weights(network.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "A network that is copied must be one that Keras can save and load: it must define `get_config`. "
            f"Received: {network} ({error})"
        ) from error
    return copy
