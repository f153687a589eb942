"""Where data come from: a name, read into a train, a validation and a test split."""

import functools
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from keras_mart import checks
from keras_mart.datasets import folder
from keras_mart.datasets.arrays import Examples, examples, hold_out, stack

DIGITS = pathlib.Path(__file__).parents[1] / "data" / "digits.npz"
VALIDATION_FRACTION, MOST_VALIDATION = 0.1, 5000
FORMS = ("digits", "tfds:<name>", "npz:<path>", "folder:<path>")
COMMON = ("tfds:cifar10", "tfds:cifar100", "tfds:mnist", "tfds:svhn_cropped")  # for the nearest name only


# The keys of an npz file of extra images and, if they are known, of their labels.
EXTRA_IMAGES, EXTRA_LABELS = ("image", "images"), ("label", "labels")


class Source(NamedTuple):
    """Number of classes, {"train" | "validation" | "test": Examples}, and names of the classes or `None`."""

    num_classes: int
    splits: dict[str, Examples]
    class_names: tuple[str, ...] | None


def read(name, data_dir=None):
    """Returns the `Source` called `name`; the last two read are kept, as long as their files do not change."""
    kind, _, location = name.partition(":")
    if name == "digits":
        return _read(kind, None, None, None)
    if kind == "tfds" and location:
        return _read(kind, location, data_dir, None)
    if kind in ("npz", "folder") and location:
        path = _resolved(location)
        return _read(kind, path, None, _state(path))
    raise ValueError(
        f"A dataset must be one of {', '.join(FORMS)}. Received: {name!r}.{checks.did_you_mean(name, FORMS + COMMON)}"
    )


def read_extra(name, data_dir=None):
    """Returns the `Examples` of an npz file of images alone or with labels, or else those that `read` trains on."""
    kind, _, location = name.partition(":")
    if kind == "npz" and location:
        path = _resolved(location)
        keys = _keys(path)
        if not {"x_train", *EXTRA_IMAGES} & keys:
            raise ValueError(
                f"Extra data must have the key {' or '.join(EXTRA_IMAGES)}, or x_train, y_train, x_test and y_test. "
                f"Received: {path} with {', '.join(sorted(keys)) or 'none'}"
            )
        if "x_train" not in keys:
            return _read_extra(path, _state(path))
    return read(name, data_dir).splits["train"]


@functools.lru_cache(maxsize=1)
def _read_extra(path, state):
    """`state` is unused but as a part of the cache's key."""
    there = _keys(path)
    found = [next((key for key in names if key in there), None) for names in (EXTRA_IMAGES, EXTRA_LABELS)]
    keys = [key for key in found if key]
    images, *labels = _arrays(path, keys)
    return examples(images, *labels or [None], f"{', '.join(keys)} of {path}")


@functools.lru_cache(maxsize=2)
def _read(kind, location, data_dir, state):
    """`state` is unused but as a part of the cache's key."""
    names = None
    if kind == "digits":
        splits = _read_digits()
    elif kind == "npz":
        splits = _read_npz(location)
    else:
        splits, names = _read_tfds(location, data_dir) if kind == "tfds" else folder.read(location)
    shapes = [splits[split].images.shape[1:] for split in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise ValueError(f"Training and test images must be of one shape. Received: {shapes} in {kind}:{location}")
    if "validation" not in splits:
        size = max(1, min(int(VALIDATION_FRACTION * len(splits["train"].labels)), MOST_VALIDATION))
        splits["train"], splits["validation"] = hold_out(splits["train"], size)
    return Source(1 + max(int(split.labels.max()) for split in splits.values()), splits, names)


def _resolved(location):
    return pathlib.Path(location).expanduser().resolve()


def _state(path):
    """What changes when the file or the folder at `path` does: number of files, bytes, newest change."""
    files = [file.stat() for file in [path, *path.rglob("*")] if file.exists()]
    return len(files), sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)


def _read_digits():
    images, labels = _arrays(DIGITS, ["images", "labels"])
    whole = examples(images.astype(np.float32) / 16, labels, DIGITS)
    rest, test = hold_out(whole, 400)
    train, validation = hold_out(rest, 200)
    return {"train": train, "validation": validation, "test": test}


def _read_npz(path):
    x_train, y_train, x_test, y_test = _arrays(path, ["x_train", "y_train", "x_test", "y_test"])
    return {
        "train": examples(x_train, y_train, f"x_train, y_train of {path}"),
        "test": examples(x_test, y_test, f"x_test, y_test of {path}"),
    }


def _arrays(path, keys):
    """Returns the arrays called `keys` of the npz file at `path`."""
    there = _keys(path)
    missing = [key for key in keys if key not in there]
    if missing:
        raise ValueError(f"The npz archive must hold {', '.join(keys)}. Received: {path} without {missing}")
    with _archive(path) as archive:
        return [_array(archive, path, key) for key in keys]


def _keys(path):
    with _archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _archive(path):
    if not path.is_file():
        raise ValueError(f"An `npz:` dataset must be an existing file. Received: {path}")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"The file must be a whole npz archive. Received: {path} ({error})") from error


def _array(archive, path, key):
    try:
        with archive.open(f"{key}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(
            "Arrays must be whole and made of numbers; objects are never unpickled. "
            f"Received: `{key}` of {path} ({error})"
        ) from error


def _read_tfds(name, data_dir):
    import tensorflow_datasets as tfds  # Only here: the other sources should not wait for its import.

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        near = checks.did_you_mean(name, tfds.list_builders(with_community_datasets=False))
        raise ValueError(f"`tfds:` must name a TensorFlow dataset. Received: {name!r}.{near}") from error
    if builder.info.supervised_keys != ("image", "label"):
        keys = builder.info.supervised_keys
        raise ValueError(f"A `tfds:` dataset must classify images. Received: {name!r} with supervised keys {keys}")
    builder.download_and_prepare()
    test = next((split for split in ("test", "validation") if split in builder.info.splits), None)
    if test is None or "train" not in builder.info.splits:
        splits = sorted(builder.info.splits)
        raise ValueError(f"A `tfds:` dataset must have train and test splits. Received: {name!r} with {splits}")
    names = getattr(builder.info.features["label"], "names", None)
    return {split: _read_tfds_split(builder, name) for split, name in (("train", "train"), ("test", test))}, (
        names and tuple(names)
    )


def _read_tfds_split(builder, split):
    pairs = list(builder.as_dataset(split=split, as_supervised=True).as_numpy_iterator())
    origin = f"tfds:{builder.info.full_name}, split {split}"
    images = stack([image for image, _ in pairs], [f"image {number}" for number in range(len(pairs))], origin)
    return examples(images, np.array([label for _, label in pairs]), origin)
