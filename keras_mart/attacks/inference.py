"""Networks as functions from images to logits, and a cache of the functions traced with them."""

import functools
import weakref

import tensorflow as tf
from keras import ops

from keras_mart import distribution, folding, memory
from keras_mart.attacks.gradients import with_scaled_gradient

# The choices made with `compile_by_xla`.
_XLA: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def compile_by_xla(network, choice):
    """Sets whether XLA compiles functions traced with a network: `True`, `False`, or "auto" for where it pays."""
    _XLA[network] = choice


def uses_xla(network):
    """Returns whether XLA compiles functions traced with a network."""
    choice = _XLA.get(network, "auto")
    return distribution.prefers_xla() if choice == "auto" else bool(choice)


def network_of(model):
    """Returns the network that a wrapped model is evaluated with; any other model is returned itself."""
    return getattr(model, "judged_network", model.network) if getattr(model, "wraps_network", False) else model


def inference(network, exact=False, training=False):
    """Returns a function that maps [batch, ...] images to [batch, classes] float32 logits.

    Gradients of a network with float16 layers are scaled (`gradients.with_scaled_gradient`).

    Args:
        network: a Keras classifier.
        exact: whether evaluation mode calls the network itself, for reported results, rather than its fast view, which
            attacks use (`keras_mart.folding`).
        training: whether the network runs in training mode.
    """
    if training:
        logits = folding.training_view(network)
    else:
        logits = functools.partial(network, training=False) if exact else folding.view(network)
    is_half = any(layer.compute_dtype == "float16" for layer in (network, *memory.layers(network)))

    def in_float32(images):
        outputs = ops.cast(logits(images), "float32")
        return with_scaled_gradient(outputs) if is_half else outputs

    return in_float32


def traced(network, key, function, signature, exact=False):
    """Returns `function(logits, *tensors)` as a `tf.function`, traced once for each network, key and signature.

    A network whose layers or variables changed is traced again (`memory.cache_of`). A network made under a strategy of
    several replicas runs on all of them, each with its share of the batch, unless this is called inside another
    `tf.function`.

    Args:
        network: a Keras classifier; its traces live as long as it does.
        key: hashable, identifies the function.
        function: takes the function that `inference` returns, then tensors; returns [batch, ...] tensors.
        signature: list of `tf.TensorSpec`.
        exact: as in `inference`.
    """
    traces = memory.cache_of(network)
    replicas = distribution.num_local_replicas(getattr(network, "distribute_strategy", None))
    distributed = replicas > 1 and not tf.inside_function()
    key = ("trace", key, exact or not folding.enabled(), uses_xla(network), distributed, *signature)
    if key not in traces:
        # A weak reference: a trace that held its network would keep it alive. A partial, not a closure: TensorFlow
        # warns of retracing if many traced functions share their code.
        called = functools.partial(_call, function, weakref.ref(network), exact)
        compiled = tf.function(called, input_signature=signature, autograph=False, jit_compile=uses_xla(network))
        if distributed:
            compiled = _on_replicas(compiled, network.distribute_strategy, replicas, signature)
        traces[key] = compiled
    return traces[key]


def _call(function, network, exact, *tensors):
    return function(inference(network(), exact), *tensors)


def _on_replicas(function, strategy, replicas, signature):
    """Returns the function with the batch split over the replicas of this process."""
    batched = [spec.shape.rank > 0 and spec.shape[0] is None for spec in signature]

    def distributed(*tensors):
        size = tf.shape(tensors[0])[0]
        share = -(-size // replicas)

        def on_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group % replicas
            rows = (replica * share + tf.range(share)) % size  # rows beyond the end are padding
            return function(
                *(tf.gather(each, rows) if split else each for each, split in zip(tensors, batched, strict=True))
            )

        parts = strategy.run(on_replica)
        return tf.nest.map_structure(lambda part: tf.concat(strategy.experimental_local_results(part), 0)[:size], parts)

    return tf.function(distributed, input_signature=signature, autograph=False)
