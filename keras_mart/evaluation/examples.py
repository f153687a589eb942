"""Reads and checks the examples of an evaluation, from data of any supported form."""

import itertools
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from keras_mart import checks, distribution, losses


def read(network, data, limit):
    """Returns [examples, ...] images and [examples] int32 labels, as arrays.

    Args:
        network: the classifier to evaluate.
        data: as in `keras_mart.evaluate`.
        limit: number of examples, from the start of the data, or `None`.

    Raises:
        ValueError: if the network cannot be evaluated on the data, they are endless and there is no limit, or they are
            empty.
    """
    if limit is not None:
        checks.positive_integer(limit, "limit")
    if _are_arrays(data):
        images, labels = (None if each is None else each[:limit] for each in data[:2])
        checks.batch(network, images, labels)
        return np.asarray(images), np.asarray(losses.hard(labels))
    parts = []
    for images, labels in _batches(data, limit):
        checks.batch(network, images, labels)
        parts.append((images, np.asarray(losses.hard(labels))))
    if not parts:
        raise ValueError("The data must not be empty. Received: no batch.")
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def first(data):
    """Returns the first batch of the data as (images, labels), or whole arrays.

    Raises:
        ValueError: if the data are empty or can be read only once.
    """
    if hasattr(data, "__next__"):
        raise ValueError(f"`data` must be readable more than once. Received: {data!r}")
    found = data[:2] if _are_arrays(data) else next(_batches(data), None)
    if found is None:
        raise ValueError("The data must not be empty. Received: no batch.")
    return found


def _are_arrays(data):
    """Returns whether the data are (images, labels[, weights]) rather than, say, a list of two batches."""
    return isinstance(data, (tuple, list)) and len(data) in (2, 3) and not isinstance(data[0], (tuple, list, Mapping))


def _batches(data, limit=None):
    """Yields (images, labels) batches as arrays, without indices and weights, at most `limit` examples in all."""
    if limit is None and _is_endless(data):
        raise ValueError("Endless data need a `limit`. Received: a dataset that repeats forever.")
    if isinstance(data, keras.utils.PyDataset):  # iterating over one does not end by itself
        count = data.num_batches
        data = map(data.__getitem__, itertools.count() if count is None else range(count))
    seen = 0
    for batch in data:
        images, _, labels, _ = checks.unpacked(batch)
        images = distribution.local_array(images)
        if images.ndim < 2:
            raise ValueError(f"The data must come in batches of images. Received: a batch of shape {images.shape}")
        labels = None if labels is None else distribution.local_array(labels)
        checks.in_batches(images, labels)
        images = images[: None if limit is None else limit - seen]
        seen += len(images)
        yield images, None if labels is None else labels[: len(images) if limit else None]
        if seen == limit:
            return


def _is_endless(data):
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    return isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY
