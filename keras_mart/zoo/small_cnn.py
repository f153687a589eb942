"""The network of the papers' MNIST experiments."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_mart.zoo import parts
from keras_mart.zoo.inputs import Normalisation, check_dropout, image_input

SIZE = 28  # height and width of MNIST's images, for which the network was designed


def small_cnn(
    num_classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
    *,
    dropout: float = 0.5,
    normalisation: Normalisation | None = None,
) -> keras.Model:
    """The MNIST network of TRADES and MART, originally Carlini and Wagner's: four convolutions, three dense layers.

    The convolutions are 3x3 without padding and have 32, 32, 64 and 64 filters, with 2x2 max pooling after the second
    and the fourth. The dense layers have 200, 200 and `num_classes` units, with dropout after the first. Activations
    are ReLU. Convolutions are initialised as normal(0, sqrt(2 / fan_in)), the last layer as 0 (so that until the first
    update the logits are 0, and attacks find no gradient), the other dense layers with PyTorch's default.

    Differences: an image smaller than 28 pixels is padded with zeros to 28 and centred; for a larger one, the first
    dense layer has more inputs.

    Args:
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images.
        dropout: float in [0, 1), the rate after the first dense layer.
        normalisation: of the images, inside the network: None, a pair (mean, std) with one value for each channel, or a
            name of `NORMALISATIONS`.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: TRADES (1901.08573), models/small_cnn.py; Carlini and Wagner (1608.04644), table 1.
    """
    check_dropout(dropout)
    images, x = image_input(num_classes, input_shape, normalisation)
    x = _pad_to(x, SIZE)
    for block, filters in enumerate((32, 64), start=1):
        for conv in (1, 2):
            initializer = parts.normal("fan_in")
            name = f"block{block}_conv{conv}"
            x = layers.Conv2D(filters, 3, activation="relu", kernel_initializer=initializer, name=name)(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = parts.dense(x, 200, activation="relu", name="dense1")
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = parts.dense(x, 200, activation="relu", name="dense2")
    logits = parts.logits(x, num_classes, kernel_initializer="zeros", bias_initializer="zeros")
    return keras.Model(images, logits, name="small_cnn")


def _pad_to(x, size):
    """Pads images smaller than `size` with zeros on all sides; an odd one goes below or to the right."""
    missing = [max(size - length, 0) for length in x.shape[1:3]]
    if not any(missing):
        return x
    return layers.ZeroPadding2D([(m // 2, m - m // 2) for m in missing], name="pad")(x)
