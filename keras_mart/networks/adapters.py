"""What stands between a Keras classifier and this package, each thing taken away by one function.

A network must return logits, and take images in [0, 1] of the data's size: the attack must see all that is done to an
image, and epsilon must mean the same everywhere. Weights are shared with the network that is given: train a copy where
that one is to be kept.
"""

import numbers

import keras
import numpy as np
from keras import ops

from keras_mart import checks
from keras_mart.networks.surgery import output_call_of, without_activation

# As `preprocess_input` of `keras.applications` calls them: the (mean, std) that images in [0, 255] are normalised by.
PREPROCESSING = {
    "tf": (127.5, 127.5),  # to [-1, 1]
    "torch": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),  # ImageNet's
    "caffe": ([103.939, 116.779, 123.68], [1.0] * 3),  # ImageNet's, blue before green before red
}


def logits_of(model):
    """Returns the network without its last softmax or sigmoid, with the same weights.

    One output z, as for a single sigmoid, becomes the two logits (0, z): their softmax is (1 - sigmoid(z), sigmoid(z)).
    A network that ends in neither, with several outputs, is returned as it is. Of several sigmoids the logits are
    returned: the largest is that of the largest probability, but the softmax is another function of them.

    Args:
        model: a functional or Sequential `keras.Model` from images to [batch, classes] or [batch, 1]; any other model
            is taken to return logits.

    Returns:
        A `keras.Model` from images to [batch, classes] logits. All weights are the given model's.

    Raises:
        ValueError: several inputs or outputs, images [batch, channels, height, width], an input that is no dense
            floats, a softmax over another axis than the last, or a last layer whose weights cannot be shared.
    """
    return _as_logits(_unsquashed(model), model)


def _as_logits(bare, model):
    """The network without its activation, with two logits for one output, in the model's dtype."""
    network = _of_one_output(bare)
    if network is model or network.outputs[0].dtype == model.outputs[0].dtype:
        return network
    # A last softmax is often float32 where the rest of the network is not.
    logits = ops.cast(network.outputs[0], model.outputs[0].dtype)
    return keras.Model(network.inputs[0], logits, name=model.name)


def _unsquashed(model):
    """The network without its last activation, and whatever it returns then."""
    checks.single_input_and_output(model)
    if hasattr(model, "outputs"):
        checks.channels_last(model.input_shape, ", which the network takes")
    if not checks.squashes(model):
        return model
    end = output_call_of(model)
    last = end.operation
    if isinstance(last, keras.Model):
        return end.with_operation(_unsquashed(last))
    if getattr(last, "axis", -1) not in (-1, len(model.output_shape) - 1):
        raise ValueError(f"The softmax must be over the last axis. Received: {last.name!r} over axis {last.axis}")
    if hasattr(last, "activation") and not isinstance(last, keras.layers.Activation):
        return end.with_operation(without_activation(last))
    return end.with_output(end.args[0])


def _of_one_output(model):
    shape = getattr(model, "output_shape", None) if hasattr(model, "outputs") else None
    if not isinstance(shape, tuple) or shape[1:] != (1,):
        return model
    return keras.Model(model.inputs[0], ops.pad(model.outputs[0], [[0, 0], [1, 0]]), name=model.name)


def with_classes(model, num_classes):
    """Returns the network of so many classes: `logits_of` it, with a new last layer where it has another number.

    The new layer is a `keras.layers.Dense` with a bias and Keras's default initialisation. All others are shared.

    Args:
        model: as in `logits_of`. That of another number of classes ends in a `keras.layers.Dense`, apart from its last
            softmax or sigmoid.
        num_classes: integer, at least 2.

    Raises:
        ValueError: a model of another number of classes with another last layer; or as `logits_of`.
    """
    bare = _unsquashed(model)
    network = _as_logits(bare, model)
    found = _classes(network)
    if found == num_classes:
        return network
    end = output_call_of(bare)
    if isinstance(end.operation, keras.Model):
        return end.with_operation(with_classes(end.operation, num_classes))
    if not isinstance(end.operation, keras.layers.Dense):
        raise ValueError(
            f"A network gets {num_classes} classes in the place of its {found} if a Dense layer is its last. "
            f"Received: {end.operation.name!r}, a {type(end.operation).__name__}"
        )
    return end.with_operation(keras.layers.Dense(num_classes, dtype=end.operation.dtype_policy, name="logits"))


def _classes(network):
    """The number of classes of a network, which is tried where it is no functional one."""
    if hasattr(network, "outputs"):
        return network.output_shape[-1]
    return checks.classes(network, np.zeros((1, *checks.image_shape(network)), "float32"))


def on_unit_images(model, preprocessing=None, *, scale=None, mean=None, std=None):
    """Returns a network that takes images in [0, 1] and gives the model what it was trained on.

    That is (scale * x - mean) / std, computed in float32 inside the network, where attacks see it.

    Args:
        model: a built `keras.Model`.
        preprocessing: "tf", "torch" or "caffe", as in `keras.applications`: scale, mean and std of that name (and
            "caffe" turns the channels round). Then no other argument is given.
        scale: the largest value that the model was trained on, such as 255; 1 by default.
        mean, std: in the units of `scale`; a number, or one for each channel. 0 and 1 by default.

    Returns:
        A `keras.Model` that contains the given one.

    Raises:
        ValueError: no argument or too many, an unknown name, a number of channels that does not fit.
    """
    given = [each for each in (scale, mean, std) if each is not None]
    if (preprocessing is None) == (not given):
        raise ValueError(
            "`on_unit_images` takes either `preprocessing` or some of `scale`, `mean` and `std`. "
            f"Received: preprocessing={preprocessing!r}, scale={scale}, mean={mean}, std={std}"
        )
    shape = checks.image_shape(model)
    if preprocessing is not None:
        checks.one_of(preprocessing, PREPROCESSING, "preprocessing")
        scale, (mean, std) = 255, PREPROCESSING[preprocessing]
    scale = 1.0 if scale is None else scale
    mean, std = (_by_channel(each, default, shape[-1]) for each, default in ((mean, 0.0), (std, 1.0)))
    if not (scale > 0 and np.all(std > 0)):
        raise ValueError(f"`scale` and `std` must be positive. Received: scale={scale}, std={std.tolist()}")
    images = keras.Input(shape, name="images")
    turned = ops.flip(images, axis=-1) if preprocessing == "caffe" else images
    # float32: half precision would round before the mean is taken off.
    normalised = keras.layers.Rescaling((scale / std).tolist(), (-mean / std).tolist(), dtype="float32")(turned)
    return keras.Model(images, model(normalised), name=model.name)


def _by_channel(value, default, channels):
    value = np.asarray(default if value is None else value, "float64")
    if value.shape not in ((), (1,), (channels,)):
        raise ValueError(
            f"`mean` and `std` must be numbers, or one for each of the {channels} channels. Received: {value.tolist()}"
        )
    return np.broadcast_to(value, (channels,))


def resized(model, size):
    """Returns a network that takes images of another size and resizes them for the model, by bilinear interpolation.

    The resizing is inside the network, where attacks see it. Epsilon is then that of the images before it. In Linf it
    means the same after it. In L2 a change of length d has about length k d after images were enlarged k times.

    Differences: larger images are averaged over whole blocks of pixels first, because XLA cannot compile Keras's
    antialiasing.

    Args:
        model: a built `keras.Model` that takes images of one height and width.
        size: (height, width) of the images to take.

    Returns:
        A `keras.Model` that contains the given one; the given one itself where it takes that size.
    """
    height, width, channels = checks.image_shape(model)
    if all(own in (None, given) for own, given in zip((height, width), size, strict=True)):
        return model
    if None in (height, width):
        raise ValueError(f"`model` must take images of one height and width. Received: {(height, width, channels)}")
    images = keras.Input((*size, channels), name="images")
    block = min(size[0] // height, size[1] // width)
    smaller = ops.average_pool(images, block, padding="same") if block > 1 else images
    # No `keras.layers.Resizing`: by its default it puts all layers behind it into training mode.
    return keras.Model(images, model(ops.image.resize(smaller, (height, width))), name=model.name)


def adapted(model, input_shape, *, preprocessing=None, num_classes=None):
    """Returns a network that this package takes, made from a model by the functions above, and what was done.

    Args:
        model: a built `keras.Model`; it shares its weights.
        input_shape: (height, width, channels) of the images; `None` for those that the model takes.
        preprocessing: what the model wants instead of images in [0, 1]: a name as in `on_unit_images`, or a number,
            its `scale`; `None` for nothing else.
        num_classes: as in `with_classes`; `None` for as many as there are.

    Returns:
        (network, list of texts, each saying one thing that was done).

    Raises:
        ValueError: as the functions above.
    """
    done, network = [], model

    def take(new, text):
        nonlocal network
        done.extend([text] if new is not network else [])
        network = new

    take(logits_of(model), "its last activation was taken off: it returns logits")
    if num_classes not in (None, _classes(network)):
        take(with_classes(model, num_classes), f"its last layer is a new one, of {num_classes} classes")
    if preprocessing is not None:
        of_number = isinstance(preprocessing, numbers.Real)
        how = {"scale": preprocessing} if of_number else {"preprocessing": preprocessing}
        text = f"times {preprocessing:g}" if of_number else f'as by "{preprocessing}"'
        take(on_unit_images(network, **how), f"images in [0, 1] are normalised inside it, {text}")
    if input_shape is not None:
        size = tuple(input_shape[:2])
        take(resized(network, size), f"images of {size[0]}x{size[1]} are resized inside it; epsilon is theirs")
    return network, done
