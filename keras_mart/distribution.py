"""Strategies from a name, and the arithmetic that makes many replicas give what one device gives."""

import numpy as np
import tensorflow as tf

STRATEGIES = ("auto", "none", "mirrored")


def strategy(name="auto"):
    """The `tf.distribute` strategy of that name.

    Args:
        name: "none" for one device, "mirrored" for all visible GPUs (all logical CPU devices where there is
            no GPU), "auto" for "mirrored" where there are at least two GPUs and "none" elsewhere.

    Raises:
        ValueError: an unknown name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}. Received: {name!r}")
    if name == "auto":
        name = "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "none"
    if name == "none":
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])


def prefers_xla():
    """Whether XLA pays on the devices at hand: on GPUs; on CPUs TensorFlow's own convolutions are faster."""
    return bool(tf.config.get_visible_devices("GPU"))


def replica_id():
    """The number of the current replica among all, an integer or an integer tensor."""
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group if context else 0


def total(value):
    """The sum of a tensor over all replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def local(value):
    """An array of this machine's part of a value: of a batch that a strategy has split, all replicas' parts."""
    parts = tf.distribute.get_strategy().experimental_local_results(value)
    return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])


def agree_on_overflow(gradients):
    """Gradients that are NaN on all replicas where one replica's are not finite.

    Keras's `LossScaleOptimizer` skips a step on what the first replica sees.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return gradients
    finite = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients if gradient is not None]
    overflown = total(tf.cast(~tf.reduce_all(finite), "float32")) > 0
    return [g if g is None else tf.where(overflown, tf.constant(float("nan"), g.dtype), g) for g in gradients]


def fill_if_empty(tensors):
    """Gives a replica without examples one of zeros, since gradients and attacks need a batch.

    A last batch smaller than the number of replicas leaves some of them empty.

    Args:
        tensors: structure of [batch, ...] tensors.

    Returns:
        The structure, and [batch] float32 that is 1 for real examples and 0 for the filling.
    """
    batch = tf.shape(tf.nest.flatten(tensors)[0])[0]
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tensors, tf.ones([batch])
    missing = tf.cast(batch == 0, "int32")

    def fill(tensor):
        return tf.pad(tensor, [[0, missing]] + [[0, 0]] * (len(tensor.shape) - 1))

    return tf.nest.map_structure(fill, tensors), tf.concat([tf.ones([batch]), tf.zeros([missing])], 0)
