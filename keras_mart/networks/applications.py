"""The networks of `keras.applications` by name, for images in [0, 1] and any number of classes."""

import inspect
import os
import sys
import warnings

import keras
import numpy as np

from keras_mart import checks
from keras_mart.networks.adapters import PREPROCESSING, on_unit_images, with_classes

IMAGENET_CLASSES = 1000
WITHOUT_TOP = {"include_top": False, "pooling": "avg"}


def application_names():
    """The names of the networks of `keras.applications`."""
    found = vars(keras.applications).items()
    return sorted(name for name, value in found if inspect.isfunction(value))


def application(name, num_classes, input_shape, weights="none"):
    """Returns a network of `keras.applications` that takes images in [0, 1] and returns logits.

    What its `preprocess_input` does to images is done inside it. Its last layer is replaced where the weights have
    another number of classes.

    Args:
        name: such as "MobileNetV2".
        num_classes: integer, at least 2.
        input_shape: (height, width, channels); many of the networks ask for at least 32 pixels, and for 3 channels.
        weights: "none" for random ones, "imagenet" for those that Keras downloads, or the path of a weights file of the
            same network, of `num_classes` or of ImageNet's classes.

    Raises:
        ValueError: an unknown name, a shape that the network does not take, weights that do not fit or cannot be had.
    """
    checks.one_of(name, application_names(), "network")
    top = {"classes": num_classes, "classifier_activation": None}
    of_imagenet = {**top, "classes": IMAGENET_CLASSES}
    if weights == "none":
        ways = [{"weights": None, **top}]
    elif weights == "imagenet":
        ways = [{"weights": "imagenet", **(top if num_classes == IMAGENET_CLASSES else WITHOUT_TOP)}]
    elif os.path.exists(os.path.expanduser(weights)):
        ways = [{"weights": os.path.expanduser(weights), **each} for each in (top, of_imagenet, WITHOUT_TOP)]
    else:
        raise ValueError(f"`weights` must be none, imagenet or an existing file. Received: {weights}")
    network = with_classes(_build(name, num_classes, tuple(input_shape), ways), num_classes)
    return on_unit_images(network, **_preprocessing(getattr(keras.applications, name)))


def _build(name, num_classes, input_shape, ways):
    """The network made in the first of the ways that its weights fit."""
    for number, way in enumerate(ways, 1):
        try:
            with warnings.catch_warnings():
                # A file that does not fit would leave layers as they are.
                warnings.filterwarnings("error", message="Skipping")
                made = getattr(keras.applications, name)(input_shape=input_shape, **way)
            if "include_top" not in way:
                return made
            logits = keras.layers.Dense(num_classes, name="logits")(made.outputs[0])
            return keras.Model(made.inputs[0], logits, name=made.name)
        except Exception as error:  # Keras raises a plain `Exception` where it cannot download
            if number == len(ways):
                told = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(
                    f"keras.applications.{name} cannot be made for images of {input_shape} with "
                    f"weights={way['weights']}: {told}"
                ) from error


def _preprocessing(made_by):
    """The arguments of `on_unit_images` that stand for a network's `preprocess_input`."""
    preprocess = sys.modules[made_by.__module__].preprocess_input
    pixels = np.float32([[[[10.0, 100.0, 200.0]]]])
    wanted = preprocess(pixels.copy())
    for name, (mean, std) in PREPROCESSING.items():
        turned = pixels[..., ::-1] if name == "caffe" else pixels
        if np.allclose(wanted, (turned - np.float32(mean)) / np.float32(std), atol=1e-3):
            return {"preprocessing": name}
    if np.array_equal(wanted, pixels):  # the network itself goes on from [0, 255]
        return {"scale": 255}
    raise ValueError(f"The preprocessing of {made_by.__name__} is not known.")
