"""Keras's BatchNormalization with the same weights and results, computed faster."""

import keras
import tensorflow as tf
from keras import ops

__all__ = ["BatchNormalization"]

# cuDNN 7 took no smaller epsilon (CUDNN_BN_MIN_EPSILON), and PyTorch's default lies on it.
SMALLEST_FUSED_EPSILON = 1e-5
FUSED_DTYPES = ("bfloat16", "float16", "float32")


@keras.saving.register_keras_serializable("keras_mart")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's BatchNormalization in one TensorFlow operation instead of a dozen.

    Statistics are computed in float32 also where the images are half precision, without a float32 copy of them.
    Arguments, weights and results are Keras's: the running variance is that of the batch, biased; under a strategy
    each replica normalises with the statistics of its own part of the batch, and by itself keeps its own running ones
    (`AdversarialModel` averages them).

    Keras's own operations are used where `epsilon` is under 1e-5, `synchronized` or `renorm` is set, a mask is
    given, the axis is not the last of four, or the weights are not float32; for evaluation in float32, where they are
    as fast; and where there are GPUs: there XLA makes one operation of them by itself, and computes the fused one's
    variance as E[x^2] - E[x]^2, which a large mean ruins.
    """

    def call(self, inputs, training=None, mask=None):
        half = inputs.dtype != tf.float32
        if can_fuse(self, inputs, mask) and (half or (training and self.trainable)):
            return fused(self, inputs, training)
        return super().call(inputs, training=training, mask=mask)


def renormalises(layer):
    """Whether a BatchNormalization renormalises, which Keras can from 3.14 on."""
    return getattr(layer, "renorm", False)


def can_fuse(layer, inputs, mask=None):
    """Whether a BatchNormalization of Keras can be computed by `fused`."""
    return (
        len(inputs.shape) == 4
        and layer.axis in (-1, 3)
        and layer.epsilon >= SMALLEST_FUSED_EPSILON
        and not (layer.synchronized or renormalises(layer))
        and mask is None
        and inputs.dtype in FUSED_DTYPES
        and layer.variable_dtype == "float32"
        and not has_gpu()
    )


def fused(layer, inputs, training=False):
    """What a built BatchNormalization of Keras makes of [batch, height, width, channels] inputs, in its dtype."""
    scale = tf.ones_like(layer.moving_mean) if layer.gamma is None else layer.gamma
    offset = tf.zeros_like(layer.moving_mean) if layer.beta is None else layer.beta
    learns = bool(training and layer.trainable)
    nothing = tf.zeros([0])  # the operation takes its statistics from the inputs
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=nothing if learns else layer.moving_mean,
        variance=nothing if learns else layer.moving_variance,
        epsilon=layer.epsilon,
        is_training=learns,
    )
    if learns:
        values = tf.cast(tf.size(inputs), "float32") / inputs.shape[-1]
        biased = tf.stop_gradient(variance) * ((values - 1) / values)  # the operation's has n / (n - 1)
        for running, new in ((layer.moving_mean, tf.stop_gradient(mean)), (layer.moving_variance, biased)):
            running.assign(running * layer.momentum + new * (1.0 - layer.momentum))
    return ops.cast(outputs, layer.compute_dtype)


def has_gpu():
    """Whether this process may use a GPU."""
    return bool(tf.config.get_visible_devices("GPU"))
