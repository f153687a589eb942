"""The networks' input, the normalisation of images, and the arguments that all networks share."""

import numbers

import keras
import numpy as np
from keras import layers

from keras_mart import checks

# (mean, std) of the channels of the training images in [0, 1], as the recipes' code has them.
NORMALISATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),  # Rice et al., utils.py; Gowal et al.
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),  # Gowal et al., pytorch/model_zoo.py
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's models
}


def image_input(num_classes, input_shape, normalisation):
    """The input, and the tensor that the network goes on from: the input, normalised if asked for."""
    _check_shapes(num_classes, input_shape)
    images = keras.Input(tuple(input_shape), name="images")
    if normalisation is None:
        return images, images
    mean, std = _mean_and_std(normalisation, channels=input_shape[-1])
    # float32: half precision would round before the mean is taken off.
    rescale = layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name="normalisation")
    return images, rescale(images)


def check_dropout(dropout):
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
    """[2, channels] numbers."""
    given = normalisation
    if isinstance(given, str):
        checks.one_of(given, NORMALISATIONS, "normalisation")
        given = NORMALISATIONS[given]
    try:
        values = np.asarray(given, dtype="float64")
    except (TypeError, ValueError):  # ragged, or no numbers
        values = np.empty(0)
    if values.shape != (2, channels) or not np.all(np.isfinite(values)) or not np.all(values[1] > 0):
        raise ValueError(
            f"`normalisation` must be a pair (mean, std) with one value for each of the {channels} channels, "
            f"std positive, or one of {', '.join(NORMALISATIONS)} for 3 channels. Received: "
            f"normalisation={normalisation}"
        )
    return values
