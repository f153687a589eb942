"""A network in evaluation mode, as a function of images, and what is traced of it once and kept."""

import functools
import weakref

import tensorflow as tf
from keras import ops

from keras_mart import distribution, folding, memory
from keras_mart.attacks.gradients import kept_alive

# Whether XLA compiles what is traced of a network, where that was said.
_XLA = weakref.WeakKeyDictionary()


def compile_by_xla(network, choice):
    """Says whether XLA compiles what is traced of a network: `True`, `False`, or "auto" for where it pays."""
    _XLA[network] = choice


def uses_xla(network):
    """Whether XLA compiles what is traced of a network."""
    choice = _XLA.get(network, "auto")
    return distribution.prefers_xla() if choice == "auto" else bool(choice)


def network_of(model):
    """The network of a wrapped model that is judged, any other model itself."""
    return getattr(model, "judged_network", model.network) if getattr(model, "wraps_network", False) else model


def inference(network, as_it_is=False, training=False):
    """Maps [batch, ...] images to [batch, classes] float32 logits, in evaluation mode or in training mode.

    Attacks see a network through its fast view; what is reported of a network is asked of it `as_it_is`. Gradients
    of a network with float16 layers are scaled where they enter it (`gradients.kept_alive`).
    """
    if training:
        logits = folding.training_view(network)
    else:
        logits = functools.partial(network, training=False) if as_it_is else folding.view(network)
    is_half = any(layer.compute_dtype == "float16" for layer in (network, *memory.layers(network)))

    def in_float32(images):
        outputs = ops.cast(logits(images), "float32")
        return kept_alive(outputs) if is_half else outputs

    return in_float32


def traced(network, key, function, signature, as_it_is=False):
    """`function(logits, *tensors)` as a `tf.function`, traced once for each network, key and signature.

    A network whose layers or variables changed is traced again (`memory.of`). One that was made under a strategy of
    several replicas runs on all of them, outside other functions: each does its share of the batch.

    Args:
        network: a Keras classifier; its traces live as long as it does.
        key: hashable, tells this function from others.
        function: takes what `inference` returns and then tensors; returns [batch, ...] tensors.
        signature: list of `tf.TensorSpec`.
        as_it_is: as in `inference`.
    """
    traces = memory.of(network)
    replicas = distribution.num_local_replicas(getattr(network, "distribute_strategy", None))
    several = replicas > 1 and not tf.inside_function()
    key = ("trace", key, as_it_is or not folding.enabled(), uses_xla(network), several, *signature)
    if key not in traces:
        # A trace that held its network would keep it alive for ever. A partial, not a closure: TensorFlow warns of
        # retracing where many traced functions share their code.
        called = functools.partial(_call, function, weakref.ref(network), as_it_is)
        compiled = tf.function(called, input_signature=signature, autograph=False, jit_compile=uses_xla(network))
        traces[key] = _on_replicas(compiled, network.distribute_strategy, replicas, signature) if several else compiled
    return traces[key]


def _call(function, network, as_it_is, *tensors):
    return function(inference(network(), as_it_is), *tensors)


def _on_replicas(function, strategy, replicas, signature):
    """The function, of which each replica of this process computes its share of the batch."""
    batched = [spec.shape.rank > 0 and spec.shape[0] is None for spec in signature]

    def everywhere(*tensors):
        size = tf.shape(tensors[0])[0]
        share = -(-size // replicas)

        def of_replica():
            own = tf.distribute.get_replica_context().replica_id_in_sync_group % replicas
            rows = (own * share + tf.range(share)) % size  # what is beyond the end is filling
            return function(
                *(tf.gather(each, rows) if cut else each for each, cut in zip(tensors, batched, strict=True))
            )

        parts = strategy.run(of_replica)
        return tf.nest.map_structure(lambda part: tf.concat(strategy.experimental_local_results(part), 0)[:size], parts)

    return tf.function(everywhere, input_signature=signature, autograph=False)
