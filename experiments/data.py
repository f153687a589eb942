"""Writes smaller training sets as npz files that the command line reads."""

import hashlib

import numpy as np

from keras_mart import files
from keras_mart.datasets import sources

DIGITS = 8  # hexadecimal digits of the contents' checksum in a file's name


def training_and_test(dataset, classes=None):
    """Returns (images, labels) of the training set, which ends with the validation examples, and of the test set.

    Args:
        dataset: name of the dataset.
        classes: number of classes to keep, the first ones; all by default.
    """
    splits = sources.read(dataset).splits
    training = [np.concatenate(parts) for parts in zip(splits["train"], splits["validation"], strict=True)]
    return [_of_classes(np.asarray(images), labels, classes) for images, labels in (training, splits["test"])]


def _of_classes(images, labels, classes):
    kept = np.full(len(labels), True) if classes is None else labels < classes
    return images[kept], labels[kept]


def subset(dataset, examples, root, classes=None):
    """Returns the name of a subset of a dataset, which is written as an npz file.

    The command line holds out a tenth of its training images for validation.

    Args:
        dataset: name of the dataset.
        examples: number of training images, the first ones of these classes; 0 for all.
        root: folder of the runs.
        classes: number of classes, the first ones; all by default.
    """
    if not examples and classes is None:
        return dataset
    (images, labels), test = training_and_test(dataset, classes)
    if not 0 <= examples <= len(labels):
        raise ValueError(f"--train_examples must be at most {len(labels)}. Received: {examples}")
    chosen = slice(examples or None)
    arrays = {"x_train": images[chosen], "y_train": labels[chosen], "x_test": test[0], "y_test": test[1]}
    return store(f"{stem(dataset)}-{examples or 'all'}", root, arrays)


def stem(dataset):
    """Returns a dataset's name in the form used in file names."""
    return dataset.partition(":")[2].rpartition("/")[2].removesuffix(".npz") or dataset


def store(name, root, arrays):
    """Writes the arrays to a file whose name includes a checksum of them, and returns the dataset's name."""
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array))
    path = root / "data" / f"{name}-{digest.hexdigest()[:DIGITS]}.npz"
    if not path.exists():
        write(path, **arrays)
    return f"npz:{path}"


def write(path, **arrays):
    """Writes an npz file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
