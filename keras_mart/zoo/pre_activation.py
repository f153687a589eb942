"""ResNets with pre-activation blocks: PreActResNet-18 and WideResNet."""

import numbers
from collections.abc import Sequence

import keras
from keras import layers

from keras_mart import checks
from keras_mart.zoo.inputs import Normalisation, check_dropout, image_input
from keras_mart.zoo.parts import BATCH_NORM_MOMENTUM, Parts, logits, normal, stages

PREACT_RESNET18_FILTERS = (64, 128, 256, 512)
WIDE_RESNET_FILTERS = (16, 32, 64)
SHORTCUTS = ("1x1", "3x3")


def preact_resnet18(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    *,
    activation: str = "relu",
    bn_momentum: float = BATCH_NORM_MOMENTUM,
    padding: str = "torch",
    shortcut: str = "1x1",
    normalisation: Normalisation | None = None,
) -> keras.Model:
    """PreActResNet-18 for 32x32 images: a 3x3 stem, four stages of two pre-activation blocks, 64 to 512 filters.

    A block is shortcut + conv(act(bn(conv(act(bn(x)))))). Its shortcut is x or, where the number of filters changes, a
    strided convolution as `shortcut` specifies. Weights have PyTorch's default initialisation.

    - Rice et al. (2002.11569): `preact_resnet18(normalisation="cifar10")`.
    - Gowal et al. (2110.09468), Wang et al. (2302.04638): `preact_resnet18(activation="silu", bn_momentum=0.99,
      padding="same", shortcut="3x3", normalisation="cifar10")`.

    Differences: the average is taken over the whole final feature map, not over 4x4 (the same for 32x32 images); the
    running variance is Keras's (see the module `keras_mart.zoo`).

    Args:
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images.
        activation: name of an elementwise activation of Keras, one of `ACTIVATIONS`.
        bn_momentum: float in [0, 1), the weight of the old running statistics: 1 minus PyTorch's momentum.
        padding: of 3x3 convolutions of stride 2. "torch": one pixel on each side; "same": TensorFlow's, for images of
            even size one pixel below and to the right.
        shortcut: where the number of filters changes, "1x1": a 1x1 convolution of act(bn(x)); "3x3": a 3x3 convolution
            of x.
        normalisation: of the images, inside the network: None, a pair (mean, std) with one value for each channel, or a
            name of `NORMALISATIONS`.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: He et al. (1603.05027); locuslab/robust_overfitting, preactresnet.py; deepmind-research,
    adversarial_robustness/pytorch/model_zoo.py.
    """
    checks.one_of(shortcut, SHORTCUTS, "shortcut")
    parts = Parts(activation, bn_momentum, padding)
    images, x = image_input(num_classes, input_shape, normalisation)
    x = parts.convolution(x, PREACT_RESNET18_FILTERS[0], name="stem_conv")
    x = _stages(parts, x, PREACT_RESNET18_FILTERS, blocks=2, shortcut=shortcut)
    return keras.Model(images, logits(x, num_classes), name="preact_resnet18")


def wide_resnet(
    depth: int = 34,
    width: int = 10,
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    dropout: float = 0.0,
    activation: str = "relu",
    bn_momentum: float = BATCH_NORM_MOMENTUM,
    padding: str = "torch",
    normalisation: Normalisation | None = None,
) -> keras.Model:
    """WideResNet for 32x32 images: three stages of (depth - 4) / 6 pre-activation blocks.

    The stages have 16, 32 and 64 times `width` filters. A block is
    shortcut + conv(dropout(act(bn(conv(act(bn(x))))))). Its shortcut is x or, where the number of filters changes, a
    strided 1x1 convolution of act(bn(x)). Convolutions are initialised as normal(0, sqrt(2 / (k * k * filters))), the
    last layer's bias as 0 and its kernel with PyTorch's default.

    - TRADES, MART: `wide_resnet(34, 10)`. Rice et al. (2002.11569): `wide_resnet(34, 10, normalisation="cifar10")`.
    - Gowal et al. (2010.03593, 2110.09468), Wang et al. (2302.04638): `wide_resnet(28, 10, activation="silu",
      bn_momentum=0.99, padding="same", normalisation="cifar10")`.

    Differences: the official code's `sub_block1`, which it builds but never calls, is omitted; the average is taken
    over the whole final feature map, not over 8x8 (the same for 32x32 images); the running variance is Keras's (see the
    module `keras_mart.zoo`). Gowal et al. trained in JAX, with the last layer initialised as 0 and the convolutions as
    a truncated normal(0, sqrt(1 / fan_in)); the initialisation of Wang et al. is the one used here.

    Args:
        depth: int, 6 n + 4 with n at least 1: the number of convolutions, including the three shortcuts.
        width: int, at least 1: the factor of the number of filters.
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images.
        dropout: float in [0, 1), the rate between the two convolutions of a block.
        activation, bn_momentum, padding: as in `preact_resnet18`.
        normalisation: of the images, inside the network: None, a pair (mean, std) with one value for each channel, or a
            name of `NORMALISATIONS`.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Zagoruyko and Komodakis (1605.07146); TRADES's and MART's official code, wideresnet.py;
    deepmind-research, adversarial_robustness/pytorch/model_zoo.py.
    """
    if not isinstance(depth, numbers.Integral) or depth < 10 or (depth - 4) % 6:
        raise ValueError(
            f"`depth` must be 6 n + 4 with n at least 1 (10, 16, 22, 28, 34, ...). Received: depth={depth}"
        )
    if not isinstance(width, numbers.Integral) or width < 1:
        raise ValueError(f"`width` must be an integer of at least 1. Received: width={width}")
    check_dropout(dropout)
    parts = Parts(activation, bn_momentum, padding, initializer=lambda _: normal("fan_out"))
    images, x = image_input(num_classes, input_shape, normalisation)
    x = parts.convolution(x, 16, name="stem_conv")
    x = _stages(parts, x, [width * each for each in WIDE_RESNET_FILTERS], blocks=(depth - 4) // 6, dropout=dropout)
    return keras.Model(images, logits(x, num_classes, bias_initializer="zeros"), name=f"wide_resnet_{depth}_{width}")


def _stages(parts, x, filters_of_stages, *, blocks, **options):
    """Adds stages of blocks, a final activation and the global average. Each stage except the first has stride 2."""
    for name, filters, strides in stages(filters_of_stages, [blocks] * len(filters_of_stages)):
        x = _block(parts, x, filters, strides, name=name, **options)
    x = parts.activated(x, name="final_bn")
    return layers.GlobalAveragePooling2D(name="pool")(x)


def _block(parts, x, filters, strides, *, name, shortcut="1x1", dropout=0.0):
    activated = parts.activated(x, name=f"{name}_bn1")
    if x.shape[-1] != filters:
        source, size = (activated, 1) if shortcut == "1x1" else (x, 3)
        x = parts.convolution(source, filters, size, strides, name=f"{name}_shortcut_conv")
    y = parts.convolution(activated, filters, 3, strides, name=f"{name}_conv1")
    y = parts.activated(y, name=f"{name}_bn2")
    if dropout:
        y = layers.Dropout(dropout, name=f"{name}_dropout")(y)
    y = parts.convolution(y, filters, name=f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([y, x])
