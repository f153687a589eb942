"""The papers' networks: functional Keras models from images in [0, 1] to logits, with PyTorch's conventions.

What the papers' recipes take for granted and Keras does otherwise is written out here: the initialisation, the
padding of strided convolutions (one pixel on each side; TensorFlow's "same" pads none and one), and
BatchNormalization's constants. The running variance stays Keras's: of the batch itself, where PyTorch's has the
factor n / (n - 1), n = batch * height * width.

The logits are float32 whatever the dtype policy.
"""

import numbers

import keras
import numpy as np
from keras import layers

from keras_mart.layers import BatchNormalization

SMALL_CNN_SIZE = 28  # MNIST's height and width, which the network was laid out for
BATCH_NORM_MOMENTUM = 0.9  # PyTorch's default, 0.1, counts the new batch's share
BATCH_NORM_EPSILON = 1e-5  # PyTorch's default
RESNET18_FILTERS = (64, 128, 256, 512)
WIDE_RESNET_FILTERS = (16, 32, 64)


def small_cnn(num_classes=10, input_shape=(28, 28, 1), *, dropout=0.5, normalisation=None):
    """Four convolutions and three dense layers: the MNIST network of TRADES and MART, first Carlini and Wagner's.

    Convolutions 3x3 without padding, of 32, 32, 64 and 64 filters, with 2x2 max pooling after the second and the
    fourth; dense layers of 200, 200 and `num_classes`; ReLU; dropout after the first dense layer. Convolutions start
    as normal(0, sqrt(2 / fan_in)), the last layer as 0 (the logits are then 0, and an attack finds no gradient, until
    the first update), the other dense layers with PyTorch's default.

    Differences: an image smaller than 28 pixels is padded with zeros to 28, centred; a larger one widens the
    first dense layer.

    Args:
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images.
        dropout: float in [0, 1), the share of the first dense layer's units left out in training.
        normalisation: None, or a pair (mean, std) with one value for each channel, applied to the images first.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: TRADES (1901.08573), models/small_cnn.py; Carlini and Wagner (1608.04644), table 1.
    """
    _check_network(num_classes, input_shape, dropout)
    images, x = _input(input_shape, normalisation)
    x = _pad_to(x, SMALL_CNN_SIZE)
    for block, filters in enumerate((32, 64), start=1):
        for conv in (1, 2):
            name = f"block{block}_conv{conv}"
            x = layers.Conv2D(filters, 3, activation="relu", kernel_initializer=_normal("fan_in"), name=name)(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = _dense(x, 200, activation="relu", name="dense1")
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = _dense(x, 200, activation="relu", name="dense2")
    logits = _logits(x, num_classes, kernel_initializer="zeros", bias_initializer="zeros")
    return keras.Model(images, logits, name="small_cnn")


def resnet18(num_classes=10, input_shape=(32, 32, 3), *, normalisation=None):
    """ResNet-18 for 32x32 images: a 3x3 stem, no max pooling, four stages of two basic blocks, 64 to 512 filters.

    A basic block is relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), whose shortcut is a strided 1x1 convolution with
    BatchNormalization where the shape changes. Weights start with PyTorch's default.

    Differences: the average is taken over all that is left of the image, not over 4x4 (the same at 32x32), so that
    other sizes work; the running variance as this module's docstring says.

    Args:
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images.
        normalisation: None, or a pair (mean, std) with one value for each channel, applied to the images first.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: He et al. (1512.03385); MART's official code, resnet.py.
    """
    _check_network(num_classes, input_shape)
    images, x = _input(input_shape, normalisation)
    x = _convolution(x, 64, name="stem_conv")
    x = _bn_relu(x, name="stem_bn")
    for stage, filters in enumerate(RESNET18_FILTERS, start=1):
        for block in (1, 2):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(x, filters, strides, name=f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, _logits(x, num_classes), name="resnet18")


def wide_resnet(depth=34, width=10, *, num_classes=10, input_shape=(32, 32, 3), dropout=0.0, normalisation=None):
    """WideResNet for 32x32 images: three stages of (depth - 4) / 6 pre-activation blocks.

    The stages have 16, 32 and 64 times `width` filters. A block is
    shortcut + conv(dropout(relu(bn(conv(relu(bn(x))))))), whose shortcut is x itself or, where the number of filters
    changes, a strided 1x1 convolution of relu(bn(x)).
    Convolutions start as normal(0, sqrt(2 / (k * k * filters))), the last layer's bias as 0 and its kernel with
    PyTorch's default.

    Differences: the official code's `sub_block1`, which it builds and never calls, is left out; the average is taken
    over all that is left of the image, not over 8x8 (the same at 32x32); the running variance as this module's
    docstring says.

    Args:
        depth: int, 6 n + 4 with n at least 1: the number of convolutions, the three shortcuts' included.
        width: int, at least 1: the factor that widens the stages.
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images.
        dropout: float in [0, 1), between a block's two convolutions.
        normalisation: None, or a pair (mean, std) with one value for each channel, applied to the images first.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Zagoruyko and Komodakis (1605.07146); TRADES's and MART's official code, wideresnet.py.
    """
    if not isinstance(depth, numbers.Integral) or depth < 10 or (depth - 4) % 6:
        raise ValueError(
            f"`depth` must be 6 n + 4 with n at least 1 (10, 16, 22, 28, 34, ...). Received: depth={depth}"
        )
    if not isinstance(width, numbers.Integral) or width < 1:
        raise ValueError(f"`width` must be an integer of at least 1. Received: width={width}")
    _check_network(num_classes, input_shape, dropout)
    images, x = _input(input_shape, normalisation)
    x = _convolution(x, 16, kernel_initializer=_normal("fan_out"), name="stem_conv")
    for stage, filters in enumerate(WIDE_RESNET_FILTERS, start=1):
        for block in range(1, (depth - 4) // 6 + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _wide_block(x, filters * width, strides, dropout, name=f"stage{stage}_block{block}")
    x = _bn_relu(x, name="final_bn")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = _logits(x, num_classes, bias_initializer="zeros")
    return keras.Model(images, logits, name=f"wide_resnet_{depth}_{width}")


def _basic_block(x, filters, strides, *, name):
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = _convolution(x, filters, 1, strides, name=f"{name}_shortcut_conv")
        shortcut = _batch_normalisation(shortcut, name=f"{name}_shortcut_bn")
    x = _convolution(x, filters, 3, strides, name=f"{name}_conv1")
    x = _bn_relu(x, name=f"{name}_bn1")
    x = _convolution(x, filters, name=f"{name}_conv2")
    x = _batch_normalisation(x, name=f"{name}_bn2")
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([x, shortcut]))


def _wide_block(x, filters, strides, dropout, *, name):
    shortcut = x
    x = _bn_relu(x, name=f"{name}_bn1")
    if shortcut.shape[-1] != filters:
        shortcut = _convolution(x, filters, 1, strides, _normal("fan_out"), name=f"{name}_shortcut_conv")
    x = _convolution(x, filters, 3, strides, _normal("fan_out"), name=f"{name}_conv1")
    x = _bn_relu(x, name=f"{name}_bn2")
    if dropout:
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    x = _convolution(x, filters, 3, 1, _normal("fan_out"), name=f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([x, shortcut])


def _convolution(x, filters, kernel_size=3, strides=1, kernel_initializer=None, *, name):
    """A convolution without bias that pads (kernel_size - 1) / 2 on each side, at stride 2 too."""
    padding = "same"
    if strides != 1:
        padding = "valid"
        if kernel_size > 1:
            x = layers.ZeroPadding2D((kernel_size - 1) // 2, name=f"{name}_pad")(x)
    initializer = kernel_initializer or _uniform(kernel_size**2 * x.shape[-1])
    return layers.Conv2D(
        filters, kernel_size, strides, padding, use_bias=False, kernel_initializer=initializer, name=name
    )(x)


def _batch_normalisation(x, *, name):
    return BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=name)(x)


def _bn_relu(x, *, name):
    return layers.ReLU(name=name.replace("bn", "relu"))(_batch_normalisation(x, name=name))


def _dense(x, units, *, kernel_initializer=None, bias_initializer=None, **kwargs):
    fan_in = x.shape[-1]
    kernel_initializer = kernel_initializer or _uniform(fan_in)
    bias_initializer = bias_initializer or _uniform(fan_in)
    return layers.Dense(units, kernel_initializer=kernel_initializer, bias_initializer=bias_initializer, **kwargs)(x)


def _logits(x, num_classes, **kwargs):
    # Half-precision logits would round away what the losses compare.
    return _dense(x, num_classes, dtype="float32", name="logits", **kwargs)


def _uniform(fan_in):
    """PyTorch's default for the weights and biases of convolutions and dense layers.

    A fresh initialiser for each weight: one that is used twice draws the same values twice.
    """
    limit = fan_in**-0.5
    return keras.initializers.RandomUniform(-limit, limit)


def _normal(mode):
    """normal(0, sqrt(2 / fan)), not truncated, with mode "fan_in" or "fan_out"; a fresh one for each weight."""
    return keras.initializers.VarianceScaling(2.0, mode, "untruncated_normal")


def _input(input_shape, normalisation):
    """The input, and the tensor that the network goes on from: the input, normalised if asked for."""
    images = keras.Input(tuple(input_shape), name="images")
    if normalisation is None:
        return images, images
    mean, std = _check_normalisation(normalisation, channels=input_shape[-1])
    # float32: half precision would round before the mean is taken off.
    rescale = layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name="normalisation")
    return images, rescale(images)


def _pad_to(x, size):
    """Zeros round the images where they are smaller than `size`, the odd one below and to the right."""
    missing = [max(size - length, 0) for length in x.shape[1:3]]
    if not any(missing):
        return x
    return layers.ZeroPadding2D([(m // 2, m - m // 2) for m in missing], name="pad")(x)


def _check_network(num_classes, input_shape, dropout=0.0):
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise ValueError(f"`num_classes` must be an integer of at least 2. Received: num_classes={num_classes}")
    lengths = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if len(lengths) != 3 or not all(isinstance(length, numbers.Integral) and length > 0 for length in lengths):
        raise ValueError(
            "`input_shape` must be (height, width, channels), three positive integers. "
            f"Received: input_shape={input_shape}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be at least 0 and below 1. Received: dropout={dropout}")


def _check_normalisation(normalisation, channels):
    """The pair (mean, std) as [channels] arrays."""
    try:
        values = np.asarray(normalisation, dtype="float64")
    except (TypeError, ValueError):  # ragged, or no numbers
        values = np.empty(0)
    if values.shape != (2, channels) or not np.all(np.isfinite(values)) or not np.all(values[1] > 0):
        raise ValueError(
            f"`normalisation` must be a pair (mean, std) with one value for each of the {channels} channels, "
            f"std positive. Received: normalisation={normalisation}"
        )
    return values
