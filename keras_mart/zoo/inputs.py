"""The input of a network, the normalisation of images, and checks of arguments that all networks share."""

import numbers
from typing import TypeAlias

import keras
import numpy as np
from keras import layers

from keras_mart import checks
from keras_mart.typing import ArrayLike

Normalisation: TypeAlias = str | ArrayLike  # a name of `NORMALISATIONS`, or [2, channels] numbers (mean, std)

# (mean, std) of the channels of the training images in [0, 1], from the code of the recipes.
NORMALISATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),  # Rice et al., utils.py; Gowal et al.
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),  # Gowal et al., pytorch/model_zoo.py
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's models
}


def image_input(num_classes, input_shape, normalisation):
    """Returns the input and the first tensor of the network: the input, normalised if `normalisation` is given."""
    _check_shapes(num_classes, input_shape)
    images = keras.Input(tuple(input_shape), name="images")
    if normalisation is None:
        return images, images
    mean, std = _mean_and_std(normalisation, channels=input_shape[-1])
    # float32, because half precision would round before the mean is subtracted.
    rescale = layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name="normalisation")
    return images, rescale(images)


def check_dropout(dropout):
    """Raises ValueError unless the rate is in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be at least 0 and below 1. Received: dropout={dropout}")


def _check_shapes(num_classes, input_shape):
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise ValueError(f"`num_classes` must be an integer of at least 2. Received: num_classes={num_classes}")
    lengths = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if len(lengths) != 3 or not all(isinstance(length, numbers.Integral) and length > 0 for length in lengths):
        raise ValueError(
            "`input_shape` must be (height, width, channels), three positive integers. "
            f"Received: input_shape={input_shape}"
        )


def _mean_and_std(normalisation, channels):
    """Returns the normalisation as a [2, channels] array."""
    given = normalisation
    if isinstance(given, str):
        checks.one_of(given, NORMALISATIONS, "normalisation")
        given = NORMALISATIONS[given]
    try:
        values = np.asarray(given, dtype="float64")
    except (TypeError, ValueError):  # ragged or not numeric
        values = np.empty(0)
    if values.shape != (2, channels) or not np.all(np.isfinite(values)) or not np.all(values[1] > 0):
        raise ValueError(
            f"`normalisation` must be a pair (mean, std) with one value for each of the {channels} channels and a "
            f"positive std, or one of {', '.join(NORMALISATIONS)} for 3 channels. Received: "
            f"normalisation={normalisation}"
        )
    return values
