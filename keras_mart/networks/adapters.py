"""Adapts Keras classifiers to this package: logits, images in [0, 1], image size and number of classes.

A network must return logits, and take images in [0, 1] of the size of the data: attacks must see all processing of an
image, and epsilon must mean the same for all networks. Adapted networks share their weights with the given model: train
a copy to keep the original.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mart import checks
from keras_mart.networks.surgery import output_call_of, without_activation
from keras_mart.typing import ArrayLike

# (mean, std) of images in [0, 255], by the modes of Keras's `preprocess_input`.
PREPROCESSING = {
    "tf": (127.5, 127.5),  # to [-1, 1]
    "torch": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),  # ImageNet's
    "caffe": ([103.939, 116.779, 123.68], [1.0] * 3),  # ImageNet's, channels in the order blue, green, red
}


def logits_of(model: keras.Model) -> keras.Model:
    """Returns the network without its last softmax or sigmoid, with the same weights.

    A single output z, as before a single sigmoid, becomes the two logits (0, z), whose softmax is
    (1 - sigmoid(z), sigmoid(z)). A network with several outputs that ends in neither activation is returned unchanged.
    For a sigmoid over several classes, the order of the logits is that of the probabilities, but their softmax differs
    from the sigmoids.

    Args:
        model: a functional or Sequential `keras.Model` from images to [batch, classes] or [batch, 1]. Any other model
            is assumed to return logits.

    Returns:
        A `keras.Model` from images to [batch, classes] logits, which shares all weights with `model`.

    Raises:
        ValueError: several inputs or outputs, images [batch, channels, height, width], a sparse or integer input, a
            softmax over another axis than the last, or a last layer whose weights cannot be shared.
    """
    return _as_logits(_without_squashing(model), model)


def _as_logits(bare, model):
    """Returns a network without activation as one with at least two logits, in the dtype of the original model."""
    network = _with_two_logits(bare)
    if network is model or network.outputs[0].dtype == model.outputs[0].dtype:
        return network
    # A softmax at the end is often float32 in a network of lower precision.
    logits = ops.cast(network.outputs[0], model.outputs[0].dtype)
    return keras.Model(network.inputs[0], logits, name=model.name)


def _without_squashing(model):
    """Returns the network without its last activation; a single output stays single."""
    checks.single_input_and_output(model)
    if hasattr(model, "outputs"):
        checks.channels_last(model.input_shape, ", which the network takes")
    if not checks.squashes(model):
        return model
    end = output_call_of(model)
    last = end.operation
    if isinstance(last, keras.Model):
        return end.with_operation(_without_squashing(last))
    if getattr(last, "axis", -1) not in (-1, len(model.output_shape) - 1):
        raise ValueError(f"The softmax must be over the last axis. Received: {last.name!r} over axis {last.axis}")
    if hasattr(last, "activation") and not isinstance(last, keras.layers.Activation):
        return end.with_operation(without_activation(last))
    return end.with_output(end.args[0])


def _with_two_logits(model):
    shape = getattr(model, "output_shape", None) if hasattr(model, "outputs") else None
    if not isinstance(shape, tuple) or shape[1:] != (1,):
        return model
    return keras.Model(model.inputs[0], ops.pad(model.outputs[0], [[0, 0], [1, 0]]), name=model.name)


def with_classes(model: keras.Model, num_classes: int) -> keras.Model:
    """Returns `logits_of(model)`, with a new last layer if it has another number of classes.

    The new layer is a `keras.layers.Dense` with a bias and Keras's default initialisation. All other layers are shared.

    Args:
        model: as in `logits_of`. If its number of classes is to change, its last layer must be a `keras.layers.Dense`,
            apart from a softmax or sigmoid.
        num_classes: integer, at least 2.

    Raises:
        ValueError: the number of classes differs and the last layer is not a Dense layer; or as in `logits_of`.
    """
    bare = _without_squashing(model)
    network = _as_logits(bare, model)
    found = _classes(network)
    if found == num_classes:
        return network
    end = output_call_of(bare)
    if isinstance(end.operation, keras.Model):
        return end.with_operation(with_classes(end.operation, num_classes))
    if not isinstance(end.operation, keras.layers.Dense):
        raise ValueError(
            f"To change the number of classes from {found} to {num_classes}, the last layer must be a Dense layer. "
            f"Received: {end.operation.name!r}, a {type(end.operation).__name__}"
        )
    return end.with_operation(keras.layers.Dense(num_classes, dtype=end.operation.dtype_policy, name="logits"))


def _classes(network):
    """Returns the number of classes of a network; one without a known output shape is called on zeros."""
    if hasattr(network, "outputs"):
        return network.output_shape[-1]
    return checks.classes(network, np.zeros((1, *checks.image_shape(network)), "float32"))


def on_unit_images(
    model: keras.Model,
    preprocessing: str | None = None,
    *,
    scale: float | None = None,
    mean: float | ArrayLike | None = None,
    std: float | ArrayLike | None = None,
) -> keras.Model:
    """Returns a network that takes images in [0, 1] and normalises them for a model.

    The model receives (scale * x - mean) / std, computed in float32 inside the network, where attacks see it.

    Args:
        model: a built `keras.Model`.
        preprocessing: "tf", "torch" or "caffe": the scale, mean and std of this mode of `keras.applications` ("caffe"
            also reverses the channels). It replaces the other arguments.
        scale: the largest pixel value that the model was trained on, such as 255; by default 1.
        mean, std: in the units of `scale`; a number, or one for each channel; by default 0 and 1.

    Returns:
        A `keras.Model` that contains the given one.

    Raises:
        ValueError: no arguments or incompatible ones, an unknown name, or a number of channels that does not fit.
    """
    given = [each for each in (scale, mean, std) if each is not None]
    if (preprocessing is None) == (not given):
        raise ValueError(
            "`on_unit_images` takes either `preprocessing` or at least one of `scale`, `mean` and `std`. "
            f"Received: preprocessing={preprocessing!r}, scale={scale}, mean={mean}, std={std}"
        )
    shape = checks.image_shape(model)
    if preprocessing is not None:
        checks.one_of(preprocessing, PREPROCESSING, "preprocessing")
        scale, (mean, std) = 255, PREPROCESSING[preprocessing]
    scale = 1.0 if scale is None else scale
    means, stds = (_by_channel(each, default, shape[-1]) for each, default in ((mean, 0.0), (std, 1.0)))
    if not (scale > 0 and np.all(stds > 0)):
        raise ValueError(f"`scale` and `std` must be positive. Received: scale={scale}, std={stds.tolist()}")
    images = keras.Input(shape, name="images")
    channels = ops.flip(images, axis=-1) if preprocessing == "caffe" else images
    # float32, because half precision would round before the mean is subtracted.
    normalised = keras.layers.Rescaling((scale / stds).tolist(), (-means / stds).tolist(), dtype="float32")(channels)
    return keras.Model(images, model(normalised), name=model.name)


def _by_channel(value, default, channels):
    value = np.asarray(default if value is None else value, "float64")
    if value.shape not in ((), (1,), (channels,)):
        raise ValueError(
            f"`mean` and `std` must be a number, or one for each of the {channels} channels. Received: {value.tolist()}"
        )
    return np.broadcast_to(value, (channels,))


def resized(model: keras.Model, size: Sequence[int]) -> keras.Model:
    """Returns a network that takes images of another size and resizes them for the model by bilinear interpolation.

    The resizing is inside the network, where attacks see it, so epsilon refers to the images before resizing. In Linf
    it is the same after resizing. In L2, a change of length d has about length k d after images are enlarged k times.

    Differences: larger images are first averaged over whole blocks of pixels, because XLA cannot compile Keras's
    antialiasing.

    Args:
        model: a built `keras.Model` that takes images of one height and width.
        size: (height, width) of the images.

    Returns:
        A `keras.Model` that contains `model`, or `model` itself if it takes images of this size.
    """
    height, width, channels = checks.image_shape(model)
    if all(own in (None, given) for own, given in zip((height, width), size, strict=True)):
        return model
    if None in (height, width):
        raise ValueError(f"`model` must take images of a fixed height and width. Received: {(height, width, channels)}")
    images = keras.Input((*size, channels), name="images")
    block = min(size[0] // height, size[1] // width)
    smaller = ops.average_pool(images, block, padding="same") if block > 1 else images
    # Not `keras.layers.Resizing`, which by default puts all layers after it into training mode.
    return keras.Model(images, model(ops.image.resize(smaller, (height, width))), name=model.name)


def adapted(
    model: keras.Model,
    input_shape: Sequence[int] | None,
    *,
    preprocessing: str | float | None = None,
    num_classes: int | None = None,
) -> tuple[keras.Model, list[str]]:
    """Adapts a model to this package by the functions above; returns the network and a description of the changes.

    Args:
        model: a built `keras.Model`; the network shares its weights.
        input_shape: (height, width, channels) of the images; `None` for the model's own.
        preprocessing: the preprocessing that the model expects, as a name of `on_unit_images` or a number, its `scale`;
            `None` if it takes images in [0, 1].
        num_classes: as in `with_classes`; `None` keeps the number of classes.

    Returns:
        (network, list of sentences, one for each change).

    Raises:
        ValueError: as in the functions above.
    """
    done, network = [], model

    def take(new, text):
        nonlocal network
        done.extend([text] if new is not network else [])
        network = new

    take(logits_of(model), "its last activation is removed: it returns logits")
    if num_classes not in (None, _classes(network)):
        take(with_classes(model, num_classes), f"its last layer is replaced by a new one, for {num_classes} classes")
    if preprocessing is not None:
        is_scale = isinstance(preprocessing, numbers.Real)
        arguments: dict[str, Any] = {"scale": preprocessing} if is_scale else {"preprocessing": preprocessing}
        text = f"multiplied by {preprocessing:g}" if is_scale else f'normalised as by "{preprocessing}"'
        take(on_unit_images(network, **arguments), f"images in [0, 1] are {text} inside it")
    if input_shape is not None:
        size = tuple(input_shape[:2])
        take(
            resized(network, size),
            f"images of {size[0]}x{size[1]} are resized inside it; epsilon refers to the images before resizing",
        )
    return network, done
