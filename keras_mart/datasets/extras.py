"""Extra training data as arrays, and pseudo-labels from a network."""

import keras
import numpy as np
import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import arrays, batches
from keras_mart.datasets.images import LazyImages, RowView
from keras_mart.typing import ArrayLike

LABELLING_BATCH_SIZE = 256


def examples(extra, network):
    """Returns the extra data as `Examples` with labels, which `network` predicts if there are none."""
    if isinstance(extra, tf.data.Dataset):
        images, labels = _read(extra)
    else:
        images, labels = extra if isinstance(extra, (tuple, list)) else (extra, None)
    found = arrays.examples(images, labels, "`extra`")
    if network is None and labels is None:
        raise ValueError("Extra images need labels, or a `network` that predicts labels. Received: neither")
    if network is not None and labels is not None:
        raise ValueError(
            "`network` must be None if the extra images have labels; to predict labels, pass only the images. "
            f"Received: labels and network={network!r}"
        )
    return found if network is None else arrays.Examples(found.images, pseudo_labels(network, found.images))


def _read(extra):
    """Returns a dataset as arrays (images, labels or `None`), sorted by its index if it has one."""
    images, _, _, weights = checks.unpacked(extra.element_spec)
    if extra.cardinality() == tf.data.INFINITE_CARDINALITY or weights is not None or not are_batches(images):
        raise ValueError(
            "`extra` must be arrays or a finite tf.data.Dataset of batches of images, (images, labels) or "
            f"((images, index), labels). Received: {extra.element_spec}, batches: {int(extra.cardinality())}"
        )
    parts = [checks.unpacked(element)[:3] for element in extra.as_numpy_iterator()]
    if not parts:
        raise ValueError("The data must not be empty. Received: no batch in `extra`")
    parts = zip(*parts, strict=True)
    images, index, labels = (None if part[0] is None else np.concatenate(part) for part in parts)
    order = slice(None) if index is None else np.argsort(index, kind="stable")
    return images[order], None if labels is None else labels[order]


def pseudo_labels(network: keras.Model, images: ArrayLike | LazyImages | RowView) -> np.ndarray:
    """Returns the [examples] int32 classes that a network predicts.

    Args:
        network: a Keras classifier that returns logits, called in evaluation mode. A model that wraps one calls the
            network that it evaluates.
        images: [examples, height, width, channels] uint8 array, or floats in [0, 1].

    Raises:
        ValueError: invalid images, or a network that does not take them or returns logits that are not finite.
    """
    images, _ = arrays.examples(images, None, "the images to label")
    probe = batches.scaled(tf.constant(images[: checks.PROBED_IMAGES]))
    checks.batch(network, probe, np.zeros(len(probe), int))

    @tf.function(input_signature=[tf.TensorSpec([None, *images.shape[1:]], images.dtype)], autograph=False)
    def classify(some):
        logits = tf.cast(network(batches.scaled(some), training=False), tf.float32)
        return tf.argmax(logits, axis=-1, output_type=tf.int32), tf.reduce_all(tf.math.is_finite(logits))

    parts = range(0, len(images), LABELLING_BATCH_SIZE)
    found, finite = zip(*(classify(images[first : first + LABELLING_BATCH_SIZE]) for first in parts), strict=True)
    if not all(finite):
        raise ValueError("A network that predicts labels must return finite logits. Received: NaN or infinite logits")
    return np.concatenate([each.numpy() for each in found])


def are_batches(images):
    """Returns whether a spec can be that of batches of images."""
    return isinstance(images, tf.TensorSpec) and images.shape.rank in (None, 4)
