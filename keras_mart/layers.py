"""A faster BatchNormalization with the weights and results of Keras's."""

import keras
import tensorflow as tf
from keras import ops

from keras_mart.typing import Tensor

__all__ = ["BatchNormalization"]

# cuDNN 7 accepts no smaller epsilon (CUDNN_BN_MIN_EPSILON); it is PyTorch's default.
SMALLEST_FUSED_EPSILON = 1e-5
FUSED_DTYPES = ("bfloat16", "float16", "float32")


@keras.saving.register_keras_serializable("keras_mart")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's BatchNormalization as one TensorFlow operation instead of a dozen.

    Statistics are computed in float32 even for half-precision inputs, without a float32 copy of these. Arguments,
    weights and results are the same as Keras's: the running variance is the biased batch variance; under a strategy
    each replica normalises with the statistics of its own part of the batch and keeps its own running statistics
    (`AdversarialModel` averages them).

    Keras's own operations are used if `epsilon` is below 1e-5, `synchronized` or `renorm` is set, a mask is given, the
    axis is not the last of four, or the weights are not float32; in float32 evaluation, where they are as fast; and on
    GPUs, where XLA fuses them by itself, but would compute the variance of the fused operation as E[x^2] - E[x]^2,
    which is inaccurate for a large mean.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        half = inputs.dtype != tf.float32
        if can_fuse(self, inputs, mask) and (half or (training and self.trainable)):
            return fused(self, inputs, training)
        return super().call(inputs, training=training, mask=mask)


def renormalises(layer):
    """Returns whether a BatchNormalization uses renormalisation, which Keras has supported since 3.14."""
    return getattr(layer, "renorm", False)


def can_fuse(layer, inputs, mask=None):
    """Returns whether `fused` can compute a BatchNormalization of Keras."""
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
    """Applies a built BatchNormalization of Keras to [batch, height, width, channels] inputs, in its compute dtype."""
    scale = tf.ones_like(layer.moving_mean) if layer.gamma is None else layer.gamma
    offset = tf.zeros_like(layer.moving_mean) if layer.beta is None else layer.beta
    learns = bool(training and layer.trainable)
    empty = tf.zeros([0])  # the operation computes the statistics of the inputs
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=empty if learns else layer.moving_mean,
        variance=empty if learns else layer.moving_variance,
        epsilon=layer.epsilon,
        is_training=learns,
    )
    if learns:
        values = tf.cast(tf.size(inputs), "float32") / inputs.shape[-1]
        biased = tf.stop_gradient(variance) * ((values - 1) / values)  # the operation returns the unbiased variance
        for running, new in ((layer.moving_mean, tf.stop_gradient(mean)), (layer.moving_variance, biased)):
            running.assign(running * layer.momentum + new * (1.0 - layer.momentum))
    return ops.cast(outputs, layer.compute_dtype)


def has_gpu():
    """Returns whether this process may use a GPU."""
    return bool(tf.config.get_visible_devices("GPU"))
