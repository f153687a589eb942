"""The images and labels that every source returns, and their checks."""

from typing import NamedTuple

import numpy as np

from keras_mart import checks
from keras_mart.datasets.images import LazyImages, RowView, release_memory

MAX_CLASSES = 2**31  # labels are int32
HOLD_OUT_SEED = 0  # RandomState's stream is the same in all NumPy versions, and so are the splits


class Examples(NamedTuple):
    """[examples, height, width, channels] images, uint8 or float32 in [0, 1]; [examples] int32 labels or `None`."""

    images: np.ndarray | LazyImages | RowView
    labels: np.ndarray | None


def examples(images, labels, origin):
    """Checks images and labels and returns them as `Examples`; uint8 arrays are not copied.

    Args:
        images: [examples, height, width, channels] or [examples, height, width], uint8 or floats in [0, 1]; or
            `LazyImages`.
        labels: [examples] or [examples, 1] integers, or `None`.
        origin: where the arrays come from, for error messages.

    Raises:
        ValueError: any other shape, dtype or value.
    """
    images = _checked_images(images if isinstance(images, LazyImages) else np.asarray(images), origin)
    if labels is None:
        return Examples(images, None)
    labels = np.asarray(labels)
    checks.labels(labels, MAX_CLASSES, f" in {origin}")
    if len(images) != len(labels):
        raise ValueError(
            "Images and labels must have the same length. "
            f"Received: {len(images)} images and {len(labels)} labels in {origin}"
        )
    return Examples(images, labels.reshape(-1).astype(np.int32))


def hold_out(whole, size):
    """Holds out `size` examples by a fixed permutation; returns (the rest, the held-out part), in their order."""
    if not 0 < size < len(whole.labels):
        raise ValueError(
            "There must be enough examples to hold some out for validation and testing. "
            f"Received: {len(whole.labels)} examples"
        )
    permutation = np.random.RandomState(HOLD_OUT_SEED).permutation(len(whole.labels))
    held_out, rest = np.sort(permutation[:size]), np.sort(permutation[size:])
    return tuple(Examples(RowView(whole.images, rows), whole.labels[rows]) for rows in (rest, held_out))


def _checked_images(images, origin):
    if len(images.shape) == 3:
        images = images[..., np.newaxis]
    if len(images.shape) != 4:
        raise ValueError(
            "Images must be [examples, height, width, channels] or [examples, height, width]. "
            f"Received: shape {images.shape} in {origin}"
        )
    checks.channels_last(images.shape, f" in {origin}")
    if images.dtype == np.uint8 and 0 not in images.shape:
        return images
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"Images must be uint8, or floats in [0, 1]. Received: dtype {images.dtype} in {origin}")
    images = np.asarray(images)
    checks.images(images, f" in {origin}")
    is_valid = images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
    release_memory(images)
    if is_valid:
        return images
    return np.clip(images, 0, 1).astype(np.float32)
