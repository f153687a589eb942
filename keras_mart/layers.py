"""Keras's layers with the same weights and results, computed faster: BatchNormalization, and Conv2D in training."""

import keras
import tensorflow as tf
from keras import ops

# cuDNN 7 took no smaller epsilon (CUDNN_BN_MIN_EPSILON), and PyTorch's default lies on it.
SMALLEST_FUSED_EPSILON = 1e-5
FUSED_DTYPES = ("bfloat16", "float16", "float32")
# Up to so many output pixels the gradient of the weights is faster as one matrix product for each tap.
FEW_PIXELS = 16


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
        if fuses(self, inputs, mask) and (half or (training and self.trainable)):
            return fused(self, inputs, training)
        return super().call(inputs, training=training, mask=mask)


def fuses(layer, inputs, mask=None):
    """Whether a BatchNormalization of Keras can be computed by `fused`."""
    return (
        len(inputs.shape) == 4
        and layer.axis in (-1, 3)
        and layer.epsilon >= SMALLEST_FUSED_EPSILON
        and not (layer.synchronized or layer.renorm)
        and mask is None
        and inputs.dtype in FUSED_DTYPES
        and layer.variable_dtype == "float32"
        and not _has_gpu()
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


def _has_gpu():
    return bool(tf.config.get_visible_devices("GPU"))


def has_slow_gradient(layer, inputs):
    """Whether `convolution` is faster in training than a Conv2D of Keras, for inputs of this shape and dtype."""
    _, *size, _ = layer.compute_output_shape(inputs.shape)
    return (
        inputs.dtype == "bfloat16"
        and not _has_gpu()
        and layer.data_format == "channels_last"
        and layer.groups == 1
        and set(layer.dilation_rate) == {1}
        and (layer.padding == "valid" or (set(layer.strides) == {1} and all(k % 2 for k in layer.kernel_size)))
        and None not in size
        and size[0] * size[1] <= FEW_PIXELS
    )


def convolution(layer, inputs):
    """What a built Conv2D of Keras makes of its inputs, with another way to the gradient of its weights.

    On CPUs and in bfloat16, TensorFlow's own takes more than twice as long as the convolution itself where few pixels
    meet many channels. Here it is one matrix product for each tap of the kernel, over the pixels that the tap meets.
    """
    outputs = _convolution(layer.strides, layer.padding)(inputs, ops.cast(layer.kernel, inputs.dtype))
    if layer.use_bias:
        outputs = ops.add(outputs, ops.cast(layer.bias, inputs.dtype))
    return layer.activation(outputs)


def _convolution(strides, padding):
    """Maps images and a kernel to the convolution, with a gradient of its own."""
    how = {"strides": (1, *strides, 1), "padding": padding.upper()}

    @tf.custom_gradient
    def convolve(images, kernel):
        outputs = tf.nn.conv2d(images, kernel, **how)

        def gradient(outer):
            outer = tf.ensure_shape(outer, outputs.shape)
            of_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images), filter=kernel, out_backprop=outer, **how
            )
            with tf.control_dependencies([outer]):  # else the slices of the images are made in advance, and kept
                return of_images, _weight_gradient(images, outer, kernel.shape, **how)

        return outputs, gradient

    return convolve


def _weight_gradient(images, outer, shape, strides, padding):
    rows, columns, channels, filters = shape
    before_first = [size // 2 if padding == "SAME" else 0 for size in (rows, columns)]  # pixels of padding

    def meeting(axis, tap):
        """The input's and the output's pixels that a tap brings together along an axis."""
        stride, offset = strides[axis], tap - before_first[axis - 1]
        first = max(0, -(offset // stride))
        last = min(outer.shape[axis] - 1, (images.shape[axis] - 1 - offset) // stride)
        return slice(first * stride + offset, last * stride + offset + 1, stride), slice(first, last + 1)

    def product(row, column):
        (in_rows, out_rows), (in_columns, out_columns) = meeting(1, row), meeting(2, column)
        if out_rows.start >= out_rows.stop or out_columns.start >= out_columns.stop:  # it meets padding alone
            return tf.zeros((channels, filters), outer.dtype)
        before = tf.reshape(images[:, in_rows, in_columns], (-1, channels))
        after = tf.reshape(outer[:, out_rows, out_columns], (-1, filters))
        return tf.matmul(before, after, transpose_a=True)

    return tf.stack([tf.stack([product(row, column) for column in range(columns)]) for row in range(rows)])
