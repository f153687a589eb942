"""A network in evaluation mode, as a function of images, and what is traced of it once and kept."""

import functools
import weakref

import tensorflow as tf
from keras import ops

from keras_mart import distribution, folding

_TRACES = weakref.WeakKeyDictionary()


def network_of(model):
    """The network of a wrapped model, any other model itself."""
    return model.network if getattr(model, "wraps_network", False) else model


def inference(network):
    """Maps [batch, ...] images to [batch, classes] float32 logits, in evaluation mode."""
    logits = folding.view(network)
    return lambda images: ops.cast(logits(images), "float32")


def traced(network, key, function, signature):
    """`function(logits, *tensors)` as a `tf.function`, traced once for each network, key and signature.

    Args:
        network: a Keras classifier; its traces live as long as it does.
        key: hashable, tells this function from others.
        function: takes `inference(network)` and then tensors.
        signature: list of `tf.TensorSpec`.
    """
    traces = _TRACES.setdefault(network, {})
    key = (key, *signature)
    if key not in traces:
        # A trace that held its network would keep it alive for ever. A partial, not a closure: TensorFlow warns of
        # retracing where many traced functions share their code.
        called = functools.partial(_call, function, weakref.ref(network))
        traces[key] = tf.function(
            called, input_signature=signature, autograph=False, jit_compile=distribution.prefers_xla()
        )
    return traces[key]


def _call(function, network, *tensors):
    return function(inference(network()), *tensors)
