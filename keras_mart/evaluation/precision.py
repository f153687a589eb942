"""Copies networks of lower precision so that they compute in float32."""

import keras

from keras_mart import checks, memory
from keras_mart.attacks.inference import compile_by_xla, uses_xla

LOWER = ("float16", "bfloat16")
PRECISIONS = ("float32", None)


def precision_of(network):
    """Returns the lowest precision in which a layer of the network computes, such as "bfloat16"."""
    found = {layer.compute_dtype for layer in (network, *memory.layers(network))}
    return next((each for each in LOWER if each in found), "float32")


def with_precision(network, precision):
    """Returns a network that computes in float32: the network itself, or a float32 copy with the same weights.

    The copy is cached for as long as the network exists; each call updates its weights.

    Args:
        network: a Keras classifier.
        precision: "float32", or `None` for the network as it is.

    Raises:
        ValueError: if `precision` is another one, or Keras cannot copy the network.
    """
    checks.one_of(precision, PRECISIONS, "precision")
    if precision is None or precision_of(network) not in LOWER:
        return network
    cache = memory.cache_of(network)
    if "float32" not in cache:
        cache["float32"] = _copy(network)
    copy = cache["float32"]
    for variable, source in zip(copy.weights, network.weights, strict=True):
        variable.assign(source)
    compile_by_xla(copy, uses_xla(network))
    return copy


def _copy(network):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # the default of layers whose configuration names no policy
    try:
        config = _in_float32(keras.saving.serialize_keras_object(network))
        with network.distribute_strategy.scope():
            copy = keras.saving.deserialize_keras_object(config, safe_mode=False)
            if not copy.built:
                copy.build(network.input_shape)
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"A network of {precision_of(network)} is evaluated through a float32 copy, which Keras must be able to "
            f"make from its `get_config`. `precision=None` evaluates it as it is. Received: {network.name} ({error})"
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)
    shapes = [[tuple(weight.shape) for weight in model.weights] for model in (network, copy)]
    if precision_of(copy) in LOWER or shapes[0] != shapes[1]:
        raise ValueError(
            "A float32 copy must compute in float32 and have the same weights. `precision=None` evaluates the network "
            f"as it is. Received: {network.name}, whose copy computes in {precision_of(copy)}"
        )
    return copy


def _in_float32(config):
    """Returns the configuration with float32 in place of every policy and dtype of lower precision."""
    if isinstance(config, dict):
        return {key: _in_float32(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(map(_in_float32, config))
    return "float32" if config in (*LOWER, *(f"mixed_{each}" for each in LOWER)) else config
