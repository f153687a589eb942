"""Data sources by name, read into a train, a validation and a test split."""

import functools
import pathlib
from typing import NamedTuple

import numpy as np

from keras_mart import checks
from keras_mart.datasets import cache, folder, npz
from keras_mart.datasets.arrays import Examples, examples, hold_out
from keras_mart.datasets.images import CHANNELS, SIZES, check_same_shape
from keras_mart.datasets.tfds import TFDSDataset

DIGITS = pathlib.Path(__file__).parents[1] / "data" / "digits.npz"
TEST_FRACTION = 0.2  # for sources without a test split
VALIDATION_FRACTION, MAX_VALIDATION = 0.1, 5000
MAX_DECODED_BYTES = 2**30  # a split of at most this size is decoded once and kept in memory
FORMS = ("digits", "tfds:<name>", "npz:<path>", "folder:<path>")
COMMON = ("tfds:cifar10", "tfds:cifar100", "tfds:mnist", "tfds:svhn_cropped")  # only for suggestions
# Keys of an npz file of extra images and, if they are known, of their labels.
EXTRA_IMAGES, EXTRA_LABELS = ("image", "images"), ("label", "labels")


class Source(NamedTuple):
    """The data of a name: number of classes, shape of an image, and the examples of each split."""

    num_classes: int
    input_shape: tuple[int, int, int]
    splits: dict[str, Examples]


def read(name, data_dir=None, image_size=None, cache=None):
    """Returns the `Source` of a name. The last two are kept in memory, and read again if their files have changed."""
    if image_size is not None:
        checks.positive_integer(image_size, "image_size")
    parts, _ = _read(*_parse_name(name, data_dir, cache))
    shape = _input_shape(parts, name, image_size)
    splits = dict(parts)
    if "whole" in parts:
        splits["train"], splits["test"] = _hold_out_fraction(splits.pop("whole"), TEST_FRACTION)
    if "validation" not in parts:
        splits["train"], splits["validation"] = _hold_out_fraction(splits["train"], VALIDATION_FRACTION, MAX_VALIDATION)
    return Source(1 + max(int(labels.max()) for _, labels in parts.values()), shape, splits)


def class_names(name, data_dir=None, cache=None):
    """Returns the class names, `None` if there are none."""
    return _read(*_parse_name(name, data_dir, cache))[1]


def _hold_out_fraction(examples, fraction, most=None):
    size = int(fraction * len(examples.labels))
    return hold_out(examples, max(1, size if most is None else min(size, most)))


def _input_shape(parts, name, image_size):
    """Returns the (height, width, channels) of the images, after resizing if `image_size` is given."""
    for images, _ in parts.values():
        check_same_shape(images, SIZES if image_size is None else CHANNELS)
    shapes = [images.shape[1:] for images, _ in parts.values()]
    if image_size is not None:
        shapes = [(image_size, image_size, shape[-1]) for shape in shapes]
    if len(set(shapes)) > 1:
        raise ValueError(f"Training and test images must have the same shape. Received: {shapes} in {name}")
    return shapes[0]


def read_extra(name, data_dir=None):
    """Returns the `Examples` of an npz file of extra data, or the train split of any other source."""
    return _read_extra(name, *_parse_name(name, data_dir, None))


def _parse_name(name, data_dir, cache):
    """Returns the arguments of `_read`. The last one changes whenever the files do."""
    kind, _, location = name.partition(":")
    if name == "digits":
        return kind, None, None, None, None
    if kind == "tfds" and location:
        return kind, location, data_dir, cache, None
    if kind in ("npz", "folder") and location:
        path = pathlib.Path(location).expanduser().resolve()
        return kind, path, None, cache if kind == "folder" else None, folder.quick_fingerprint(path)
    raise ValueError(
        f"A dataset must be one of {', '.join(FORMS)}. Received: {name!r}.{checks.did_you_mean(name, FORMS + COMMON)}"
    )


@functools.lru_cache(maxsize=1)
def _read_extra(name, kind, location, *others):
    if kind == "npz":
        keys_found = npz.array_names(location)
        if not {"x_train", *EXTRA_IMAGES} & keys_found:
            raise ValueError(
                f"Extra data must have the key {' or '.join(EXTRA_IMAGES)}, or x_train, y_train, x_test and y_test. "
                f"Received: {location} with {', '.join(sorted(keys_found)) or 'none'}"
            )
        if "x_train" not in keys_found:
            found = [next((key for key in names if key in keys_found), None) for names in (EXTRA_IMAGES, EXTRA_LABELS)]
            keys = [key for key in found if key]
            images, *labels = npz.read_arrays(location, keys)
            return examples(images, *labels or [None], f"{', '.join(keys)} of {location}")
    images, labels = read(name, others[0]).splits["train"]
    return Examples(np.asarray(images), labels)


@functools.lru_cache(maxsize=2)
def _read(kind, location, data_dir, cache_folder, state):
    """Returns ({"train", "test"[, "validation"]: Examples} or {"whole": Examples}, class names or `None`).

    `state` is only part of the `lru_cache` key.
    """
    if kind == "digits":
        return _read_digits(), None
    if kind == "npz":
        return _read_npz(location), None
    source = folder.Folder(location) if kind == "folder" else TFDSDataset(location, data_dir)
    if cache_folder is None:
        parts, names = source.read()
    else:
        parts, names = cache.load_or_create(cache_folder, f"{kind}:{location}", source)
    return {part: Examples(_decoded_if_small(images), labels) for part, (images, labels) in parts.items()}, names


def _decoded_if_small(images):
    """Decodes images that fit in memory to an array, because decoding them in every epoch would be slower."""
    small = None not in images.shape and np.prod(images.shape, dtype=np.int64) <= MAX_DECODED_BYTES
    return np.asarray(images) if small else images


def _read_digits():
    images, labels = npz.read_arrays(DIGITS, ["images", "labels"])
    whole = examples(images.astype(np.float32) / 16, labels, DIGITS)
    rest, test = hold_out(whole, 400)
    train, validation = hold_out(rest, 200)
    return {"train": train, "validation": validation, "test": test}


def _read_npz(path):
    x_train, y_train, x_test, y_test = npz.read_arrays(path, ["x_train", "y_train", "x_test", "y_test"])
    return {
        "train": examples(x_train, y_train, f"x_train, y_train of {path}"),
        "test": examples(x_test, y_test, f"x_test, y_test of {path}"),
    }
