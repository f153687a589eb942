"""The networks of `keras.applications` by name, for images in [0, 1] and any number of classes."""

import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_mart import checks
from keras_mart.networks.adapters import PREPROCESSING, on_unit_images, with_classes

IMAGENET_CLASSES = 1000
WITHOUT_TOP = {"include_top": False, "pooling": "avg"}


def application_names() -> list[str]:
    """Returns the names of the networks of `keras.applications`."""
    found = vars(keras.applications).items()
    return sorted(name for name, value in found if inspect.isfunction(value))


def application(
    name: str, num_classes: int, input_shape: Sequence[int], weights: str | os.PathLike[str] = "none"
) -> keras.Model:
    """Returns a network of `keras.applications` that takes images in [0, 1] and returns logits.

    The network includes the preprocessing of its `preprocess_input`. If the weights have another number of classes, its
    last layer is replaced.

    Args:
        name: for example "MobileNetV2".
        num_classes: integer, at least 2.
        input_shape: (height, width, channels); many of the networks need at least 32 pixels and 3 channels.
        weights: "none" for random weights, "imagenet" for weights that Keras downloads, or the path of a weights file
            of the same network, with `num_classes` or ImageNet's 1,000 classes.

    Raises:
        ValueError: an unknown name, an unsupported shape, or weights that do not fit or cannot be loaded.
    """
    checks.one_of(name, application_names(), "network")
    top: dict[str, Any] = {"classes": num_classes, "classifier_activation": None}
    imagenet_top = {**top, "classes": IMAGENET_CLASSES}
    if weights == "none":
        candidates: list[dict[str, Any]] = [{"weights": None, **top}]
    elif weights == "imagenet":
        candidates = [{"weights": "imagenet", **(top if num_classes == IMAGENET_CLASSES else WITHOUT_TOP)}]
    elif os.path.exists(os.path.expanduser(weights)):
        candidates = [{"weights": os.path.expanduser(weights), **each} for each in (top, imagenet_top, WITHOUT_TOP)]
    else:
        raise ValueError(f"`weights` must be none, imagenet or an existing file. Received: {weights}")
    network = with_classes(_build(name, num_classes, tuple(input_shape), candidates), num_classes)
    return on_unit_images(network, **_preprocessing(getattr(keras.applications, name)))


def _build(name, num_classes, input_shape, candidates):
    """Returns the network with the first of several candidate arguments that fit the weights."""
    for number, arguments in enumerate(candidates, 1):
        try:
            with warnings.catch_warnings():
                # Otherwise layers that do not fit the file would keep their random weights.
                warnings.filterwarnings("error", message="Skipping")
                network = getattr(keras.applications, name)(input_shape=input_shape, **arguments)
            if "include_top" not in arguments:
                return network
            logits = keras.layers.Dense(num_classes, name="logits")(network.outputs[0])
            return keras.Model(network.inputs[0], logits, name=network.name)
        except Exception as error:  # Keras raises a plain `Exception` if a download fails
            if number == len(candidates):
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(
                    f"keras.applications.{name} cannot be built for images of {input_shape} with "
                    f"weights={arguments['weights']}: {reason}"
                ) from error


def _preprocessing(constructor):
    """Returns the arguments of `on_unit_images` that are equivalent to a network's `preprocess_input`."""
    preprocess = sys.modules[constructor.__module__].preprocess_input
    pixels = np.float32([[[[10.0, 100.0, 200.0]]]])
    expected = preprocess(pixels.copy())
    for name, (mean, std) in PREPROCESSING.items():
        channels = pixels[..., ::-1] if name == "caffe" else pixels
        if np.allclose(expected, (channels - np.float32(mean)) / np.float32(std), atol=1e-3):
            return {"preprocessing": name}
    if np.array_equal(expected, pixels):  # the network itself normalises images in [0, 255]
        return {"scale": 255}
    raise ValueError(f"The preprocessing of keras.applications.{constructor.__name__} is not known.")
