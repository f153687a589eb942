"""ResNets for 32x32 images, and Keras's ResNet-50 for ImageNet."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_mart import checks
from keras_mart.zoo.inputs import Normalisation, image_input
from keras_mart.zoo.parts import Parts, logits, stages

FILTERS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
BOTTLENECKS = (50,)
EXPANSION = 4  # factor of the filters in the last convolution of a bottleneck


def resnet(
    depth: int = 18,
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    normalisation: Normalisation | None = None,
) -> keras.Model:
    """ResNet for 32x32 images: a 3x3 stem, no max pooling, four stages of 64 to 512 filters.

    A basic block (depth 18 and 34) is relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))). A bottleneck (depth 50) has a
    1x1, a 3x3 and a 1x1 convolution, the last with four times as many filters; the 3x3 convolution has the stride.
    Where the shape changes, the shortcut is a strided 1x1 convolution with BatchNormalization. Weights have PyTorch's
    default initialisation.

    Differences: the average is taken over the whole final feature map, not over 4x4 (the same for 32x32 images), so
    that other sizes work; the running variance is Keras's (see the module `keras_mart.zoo`).

    Args:
        depth: 18, 34 or 50: the number of layers with weights, excluding shortcuts.
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images.
        normalisation: of the images, inside the network: None, a pair (mean, std) with one value for each channel, or a
            name of `NORMALISATIONS`.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: He et al. (1512.03385); TRADES's and MART's official code, resnet.py.
    """
    checks.one_of(depth, BLOCKS, "depth")
    images, x = image_input(num_classes, input_shape, normalisation)
    parts = Parts()
    x = parts.convolution(x, FILTERS[0], name="stem_conv")
    x = parts.activated(x, name="stem_bn")
    for name, filters, strides in stages(FILTERS, BLOCKS[depth]):
        x = _block(parts, x, _convolutions(depth, filters, strides), name=name)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, logits(x, num_classes), name=f"resnet{depth}")


def resnet18(
    num_classes: int = 10, input_shape: Sequence[int] = (32, 32, 3), *, normalisation: Normalisation | None = None
) -> keras.Model:
    """ResNet-18 for 32x32 images, the network of MART's experiments. Equivalent to `resnet(18)`."""
    return resnet(18, num_classes=num_classes, input_shape=input_shape, normalisation=normalisation)


def imagenet_resnet50(
    num_classes: int = 1000,
    input_shape: Sequence[int] = (224, 224, 3),
    *,
    normalisation: Normalisation | None = "imagenet",
) -> keras.Model:
    """Returns `keras.applications.ResNet50` with random weights, a normalisation of the images and float32 logits.

    `keras_mart.networks.application("ResNet50", ...)` returns the same network with the weights that Keras downloads
    and the normalisation that they were trained with.

    Differences from torchvision: Keras's bottleneck has its stride in the first 1x1 convolution, its convolutions have
    biases and Glorot initialisation, and BatchNormalization has momentum 0.99 and epsilon 1.001e-5.

    Args:
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images.
        normalisation: of the images, inside the network: None, a pair (mean, std) with one value for each channel, or a
            name of `NORMALISATIONS`.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: He et al. (1512.03385).
    """
    images, x = image_input(num_classes, input_shape, normalisation)
    features = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=x, pooling="avg").outputs[0]
    return keras.Model(images, logits(features, num_classes), name="imagenet_resnet50")


def _convolutions(depth, filters, strides):
    """Returns the (filters, kernel size, strides) of each convolution of a block."""
    if depth in BOTTLENECKS:
        return (filters, 1, 1), (filters, 3, strides), (EXPANSION * filters, 1, 1)
    return (filters, 3, strides), (filters, 3, 1)


def _block(parts, x, convolutions, *, name):
    shortcut, filters = x, convolutions[-1][0]
    strides = max(each[-1] for each in convolutions)
    if strides != 1 or x.shape[-1] != filters:
        shortcut = parts.convolution(x, filters, 1, strides, name=f"{name}_shortcut_conv")
        shortcut = parts.normalised(shortcut, name=f"{name}_shortcut_bn")
    last = len(convolutions)
    for number, convolution in enumerate(convolutions, start=1):
        x = parts.convolution(x, *convolution, name=f"{name}_conv{number}")
        x = (parts.normalised if number == last else parts.activated)(x, name=f"{name}_bn{number}")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("relu", name=f"{name}_relu{last}")(x)
