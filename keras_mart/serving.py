"""A trained network as a SavedModel, in the layout that TensorFlow Serving watches."""

import errno
import os
import pathlib
import tempfile

import keras
import tensorflow as tf

from keras_mart import checks, files
from keras_mart.attacks.inference import network_of

__all__ = ["export", "load"]

# What a rename says where the version is there already: a folder with content, or a file.
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
DECODABLE_CHANNELS = (1, 3)  # what `tf.io.decode_jpeg` can turn an image into
LARGEST_VALUE = 255.0  # of an 8-bit image


def export(model, directory):
    """Writes the network of a model as the next version `<directory>/<version>/`, for TensorFlow Serving.

    The SavedModel holds the network alone, in inference mode: no optimizer, no method, no metrics. It needs
    TensorFlow only. The version is 1 more than the largest there is (1 at first). It appears in one step, so that a
    server watching the directory never loads half of it, and an export never overwrites another.

    Signatures, for a batch of any size (at least 1):
        serving_default: `images`, [batch, height, width, channels] float32 in [0, 1].
        serve_encoded: `encoded`, [batch] strings, the bytes of PNG or JPEG files. Decoded as the training data are,
            turned into the network's channels, divided by 255, and resized (bilinear, no antialiasing) where
            their size is not the network's. A network of open height or width resizes nothing: a batch then has one
            size. Left out for networks of other than 1 or 3 channels.
    Both return `logits` [batch, classes] float32, `probabilities` [batch, classes] float32 (their softmax) and
    `classes` [batch] int64 (the largest logit).

    Args:
        model: a wrapped model, or any built Keras classifier that returns logits.
        directory: str or path of a folder on this machine, made where it is missing; its name is not part of the model.

    Returns:
        `pathlib.Path` of the version written.

    Raises:
        ValueError: if the model is not built, takes no images or returns no logits; if `directory` cannot be written.
    """
    network = network_of(model)
    checks.network(network)
    module, signatures = _serving_module(network, checks.image_shape(network))
    directory = pathlib.Path(directory)
    with _hidden_folder(directory) as hidden:
        # One level down: the hidden folder is its owner's alone, what is written inside has the usual permissions.
        written = os.path.join(hidden, "saved_model")
        tf.saved_model.save(module, written, signatures=signatures)
        return _publish(written, directory)


def load(path):
    """A classifier from a file, to attack it or to make adversarial examples on it.

    Args:
        path: a `.keras` or `.h5` file, of a wrapped model or any other; or the folder of a SavedModel, or the one round
            its versions, of which the newest is taken. Its `serving_default` takes images and returns `logits`, or
            nothing else than logits.

    Returns:
        A `keras.Model`, not compiled. That of a SavedModel can be called and differentiated, not trained.

    Raises:
        ValueError: there is no such model, or its signature is another.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _load_saved_model(path)
    if not path.exists():
        raise ValueError(
            f"`path` must be a .keras or .h5 file or a SavedModel. Received: {str(path)!r}, which does not exist"
        )
    try:
        return keras.saving.load_model(path, compile=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"`path` must be a .keras or .h5 file or a SavedModel. Received: {str(path)!r} ({error})"
        ) from error


def _load_saved_model(folder):
    newest = max(_versions(folder), default=None)
    folder = folder if newest is None else folder / str(newest)
    try:
        layer = keras.layers.TFSMLayer(str(folder), call_endpoint="serving_default", dtype="float32")
    except (ValueError, OSError) as error:
        raise ValueError(f"There must be a SavedModel in the folder. Received: {str(folder)!r} ({error})") from error
    signature = layer.call_endpoint_fn
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    name = "logits" if "logits" in outputs else next(iter(outputs))
    if len(inputs) != 1 or (name != "logits" and len(outputs) != 1):
        given = f"{', '.join(inputs)} to {', '.join(sorted(outputs))}"
        raise ValueError(f"The SavedModel must take images and return logits. Received: {given}")
    images = keras.Input(next(iter(inputs.values())).shape[1:])
    return keras.Model(images, layer(images)[name], name="saved_model")


def _serving_module(network, image_shape):
    """A `tf.Module` that holds the network's variables and nothing else, and its signatures."""

    def classify(images):
        logits = network(images, training=False)
        if not tf.is_tensor(logits) or logits.shape.rank != 2:
            raise ValueError(f"`model` must return logits [batch, classes]. Received: output {logits}")
        logits = tf.cast(logits, tf.float32)
        classes = tf.argmax(logits, axis=-1, output_type=tf.int64)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "classes": classes}

    def classify_encoded(encoded):
        images = tf.map_fn(
            lambda contents: _decode(contents, image_shape),
            encoded,
            fn_output_signature=tf.TensorSpec(image_shape, tf.float32),
        )
        return classify(images)

    images = tf.TensorSpec((None, *image_shape), tf.float32, name="images")
    classify = tf.function(classify, input_signature=[images], autograph=False)
    signatures = {"serving_default": classify.get_concrete_function()}
    if image_shape[-1] in DECODABLE_CHANNELS:
        encoded = tf.TensorSpec((None,), tf.string, name="encoded")
        classify_encoded = tf.function(classify_encoded, input_signature=[encoded], autograph=False)
        signatures["serve_encoded"] = classify_encoded.get_concrete_function()
    module = tf.Module()
    module.network_variables = list(signatures["serving_default"].variables)
    return module, signatures


def _decode(contents, image_shape):
    """A float32 image in [0, 1] of shape (height, width, channels) from the bytes of one PNG or JPEG file."""
    # `decode_jpeg` reads PNG as well, and `decode_image` knows no DCT method.
    image = tf.io.decode_jpeg(contents, channels=image_shape[-1], dct_method="INTEGER_ACCURATE")
    image = tf.cast(image, tf.float32) / LARGEST_VALUE
    if None in image_shape[:2]:
        return image
    return tf.image.resize(image, image_shape[:2])  # leaves every value as it is where the size fits


def _hidden_folder(directory):
    """A temporary folder inside `directory`, under a name that no server takes for a version."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".export-", dir=directory)
    except OSError as error:
        raise ValueError(
            f"`directory` must be a folder that can be written. Received: directory={str(directory)!r} ({error})"
        ) from error


def _versions(directory):
    return [int(name) for name in os.listdir(directory) if name.isascii() and name.isdigit()]


def _publish(written, directory):
    """Moves a finished SavedModel to the next free version, in one step, when it is on the disk."""
    files.sync_tree(written)
    while True:
        target = directory / str(max(_versions(directory), default=0) + 1)
        try:
            os.rename(written, target)
            break
        except OSError as error:  # another export was faster: now its version counts
            if error.errno not in TAKEN:
                raise
    files.sync(directory)
    return target
