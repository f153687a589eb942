"""A second network like a first one."""

import pathlib
import tempfile

import keras

from keras_mart import memory


def copy_of(network, from_config=False):
    """Returns a network of the same layers and weights, frozen where the first one is; `None` for one not built yet.

    It is saved and loaded: so it has all that layers keep, also what they derive from their weights (Normalization) or
    keep beside them (vocabularies).

    Args:
        network: a Keras model.
        from_config: whether its configuration and its weights are all that there is to it yet.

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
            if from_config:
                copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
            else:
                file = pathlib.Path(folder) / "network.keras"
                keras.saving.save_model(network, file)
                copy = keras.saving.load_model(file, compile=False, safe_mode=False)  # this file is our own
        if [type(layer) for layer in (copy, *memory.layers(copy))] != kinds:
            raise ValueError("Keras finds other classes of the same names")
        copy.set_weights(network.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "A network that is copied must be one that Keras can save and load: it must give its `get_config`. "
            f"Received: {network} ({error})"
        ) from error
    return copy
