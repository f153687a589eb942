"""Extra training data as arrays, and the labels that a network gives them."""

import numpy as np
import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import arrays, batches

LABELLING_BATCH_SIZE = 256  # images that a network labels in one call


def examples(extra, network):
    """The extra data as arrays, with labels."""
    if isinstance(extra, tf.data.Dataset):
        images, labels = _read(extra)
    else:
        images, labels = extra if isinstance(extra, (tuple, list)) else (extra, None)
    found = arrays.examples(images, labels, "`extra`")
    if network is None and labels is None:
        raise ValueError("Extra images need labels, or a `network` that labels them. Received: neither")
    if network is not None and labels is not None:
        raise ValueError(
            "Extra images are labelled by a `network` only if they have no labels: give the images alone. "
            f"Received: labels and network={network!r}"
        )
    return found if network is None else arrays.Examples(found.images, pseudo_labels(network, found.images))


def _read(extra):
    """(images, labels or `None`) of a dataset as arrays, in the order of its index if it has one."""
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


def pseudo_labels(network, images):
    """Returns the [examples] int32 classes that a network finds most probable.

    Args:
        network: a Keras classifier that returns logits; called in evaluation mode. Of a wrapped model the network that
            is judged.
        images: [examples, height, width, channels] uint8 array, or floats in [0, 1].

    Raises:
        ValueError: images of another form, or a network that does not take them or returns no finite logits.
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
        raise ValueError("A network that labels images must return finite logits. Received: NaN or infinite ones")
    return np.concatenate([each.numpy() for each in found])


def are_batches(images):
    """Whether a spec can be that of batches of images."""
    return isinstance(images, tf.TensorSpec) and images.shape.rank in (None, 4)
