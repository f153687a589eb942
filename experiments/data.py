"""Smaller training sets, as npz files that the command line reads."""

import hashlib

import numpy as np

from keras_mart import files
from keras_mart.datasets import sources

DIGITS = 8  # hexadecimal, of a file's contents in its name


def whole(dataset, classes=None):
    """(images, labels) of all training images, those that validate last, and of the test images; of the first classes.

    All classes by default.
    """
    splits = sources.read(dataset).splits
    training = [np.concatenate(parts) for parts in zip(splits["train"], splits["validation"], strict=True)]
    return [_of_classes(np.asarray(images), labels, classes) for images, labels in (training, splits["test"])]


def _of_classes(images, labels, classes):
    kept = np.full(len(labels), True) if classes is None else labels < classes
    return images[kept], labels[kept]


def first(dataset, examples, root, classes=None):
    """The name of a dataset of another's first so many training images (0 for all) of the first so many classes.

    The command line validates on a tenth of them.
    """
    if not examples and classes is None:
        return dataset
    (images, labels), test = whole(dataset, classes)
    if not 0 <= examples <= len(labels):
        raise ValueError(f"--train_examples must be at most {len(labels)}. Received: {examples}")
    chosen = slice(examples or None)
    arrays = {"x_train": images[chosen], "y_train": labels[chosen], "x_test": test[0], "y_test": test[1]}
    return kept(f"{stem(dataset)}-{examples or 'all'}", root, arrays)


def stem(dataset):
    """A dataset's name as files have it."""
    return dataset.partition(":")[2].rpartition("/")[2].removesuffix(".npz") or dataset


def kept(name, root, arrays):
    """The name of the dataset of these arrays, in a file that is named after its contents too."""
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array))
    path = root / "data" / f"{name}-{digest.hexdigest()[:DIGITS]}.npz"
    if not path.exists():
        write(path, **arrays)
    return f"npz:{path}"


def write(path, **arrays):
    """Writes an npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
