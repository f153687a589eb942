"""Exports trained networks as SavedModels for TensorFlow Serving, and loads classifiers from files."""

import errno
import os
import pathlib
import tempfile

import keras
import tensorflow as tf

from keras_mart import checks, files
from keras_mart.attacks.inference import network_of

__all__ = ["export", "load"]

# Errors of a rename to a version that exists already, as a folder with content or as a file.
TARGET_EXISTS = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
DECODABLE_CHANNELS = (1, 3)  # numbers of channels that `tf.io.decode_jpeg` can convert an image to
LARGEST_VALUE = 255.0  # of an 8-bit image


def export(model: keras.Model, directory: str | os.PathLike) -> pathlib.Path:
    """Writes the network of a model as the next version `<directory>/<version>/`, for TensorFlow Serving.

    The SavedModel contains only the network, in inference mode, without optimizer, method or metrics, and loads with
    TensorFlow only. The version is 1 more than the largest existing one (1 at first). It is written atomically, so that
    a server that watches the directory never loads an incomplete version, and an export never overwrites another.

    Signatures, for a batch of any size (at least 1):
        serving_default: `images`, [batch, height, width, channels] float32 in [0, 1].
        serve_encoded: `encoded`, [batch] strings, the bytes of PNG or JPEG files. They are decoded like the training
            data, converted to the network's number of channels, divided by 255, and resized (bilinear, no antialiasing)
            if their size is not the network's. If the network's height or width is unspecified, nothing is resized, and
            all images of a batch must have one size. This signature exists only for networks of 1 or 3 channels.
    Both return `logits` [batch, classes] float32, `probabilities` [batch, classes] float32 (their softmax) and
    `classes` [batch] int64 (the largest logit).

    Args:
        model: a wrapped model, or any built Keras classifier that returns logits.
        directory: folder on this machine, created if missing; its name is not part of the model.

    Returns:
        The `pathlib.Path` of the new version.

    Raises:
        ValueError: if the model is not built, does not take images or does not return logits, or if `directory` cannot
            be written.
    """
    network = network_of(model)
    checks.network(network)
    module, signatures = _serving_module(network, checks.image_shape(network))
    directory = pathlib.Path(directory)
    with _hidden_folder(directory) as hidden:
        # In a subfolder: only the owner may read the temporary folder, while its content has the usual permissions.
        written = os.path.join(hidden, "saved_model")
        tf.saved_model.save(module, written, signatures=signatures)
        return _publish(written, directory)


def load(path: str | os.PathLike) -> keras.Model:
    """Loads a classifier from a file, to attack it or to generate adversarial examples with it.

    Args:
        path: a `.keras` or `.h5` file of a wrapped or any other model; the folder of a SavedModel; or a folder of
            versions, of which the newest is loaded. The `serving_default` signature of a SavedModel must take images
            and return `logits`, or have logits as its only output.

    Returns:
        A `keras.Model`, not compiled. The model of a SavedModel can be called and differentiated but not trained.

    Raises:
        ValueError: if there is no such model, or its signature does not fit.
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
    """Returns a `tf.Module` that contains only the network's variables, and its signatures."""

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
    """Returns the float32 image [height, width, channels] in [0, 1] of the bytes of a PNG or JPEG file."""
    # `decode_jpeg` also reads PNG; `decode_image` has no argument for the DCT method.
    image = tf.io.decode_jpeg(contents, channels=image_shape[-1], dct_method="INTEGER_ACCURATE")
    image = tf.cast(image, tf.float32) / LARGEST_VALUE
    if None in image_shape[:2]:
        return image
    return tf.image.resize(image, image_shape[:2])  # leaves the values unchanged if the size fits


def _hidden_folder(directory):
    """Creates a temporary folder in `directory`, with a name that servers do not take for a version."""
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
    """Writes a finished SavedModel to disk and moves it atomically to the next free version."""
    files.sync_tree(written)
    while True:
        target = directory / str(max(_versions(directory), default=0) + 1)
        try:
            os.rename(written, target)
            break
        except OSError as error:  # another export took this version
            if error.errno not in TARGET_EXISTS:
                raise
    files.sync(directory)
    return target
