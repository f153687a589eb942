"""A folder of PNG or JPEG files, one sub-folder a class, as arrays."""

import numpy as np
import tensorflow as tf

from keras_mart.datasets.arrays import examples, hold_out, stack

SUFFIXES = {".png", ".jpg", ".jpeg"}
TEST_FRACTION = 0.2


def read(path):
    """Returns ({"train": Examples, "test": Examples}, names) of `path`; classes are numbered in the order of names.

    Args:
        path: a folder with `train/<class>/` and `test/<class>/`, or with `<class>/` alone: then a fixed fifth is the
            test split.
    """
    if not path.is_dir():
        raise ValueError(f"A `folder:` dataset must be an existing folder. Received: {path}")
    if not (path / "train").is_dir() and not (path / "test").is_dir():
        classes = _class_names(path)
        whole = _read_classes(path, classes)
        train, test = hold_out(whole, max(1, int(TEST_FRACTION * len(whole.labels))))
        return {"train": train, "test": test}, tuple(classes)
    for split in ("train", "test"):
        if not (path / split).is_dir():
            raise ValueError(f"A folder with train/ or test/ must have both. Received: no {split}/ in {path}")
    classes = _class_names(path / "train")
    unknown = sorted(set(_class_names(path / "test")) - set(classes))
    if unknown:
        raise ValueError(f"Every class of test/ must be in train/ too. Received: {unknown} in {path / 'test'}")
    return {split: _read_classes(path / split, classes) for split in ("train", "test")}, tuple(classes)


def _class_names(path):
    """Sorted names of the sub-folders that hold images."""
    return sorted(folder.name for folder in path.iterdir() if folder.is_dir() and _image_files(folder))


def _image_files(folder):
    # Hidden files are what other systems leave behind (macOS's "._name.png"), not images.
    return sorted(
        file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


def _read_classes(path, classes):
    files = [(file, label) for label, name in enumerate(classes) for file in _image_files(path / name)]
    if not files:
        raise ValueError(f"A folder must hold <class>/ folders with PNG or JPEG images. Received: none in {path}")
    images = stack([_decode(file) for file, _ in files], [file.relative_to(path) for file, _ in files], path)
    return examples(images, [label for _, label in files], path)


def _decode(file) -> np.ndarray:
    try:
        # Reads PNG as well, by content. The default dct_method differs from libjpeg by up to 5 grey levels.
        return tf.io.decode_jpeg(file.read_bytes(), dct_method="INTEGER_ACCURATE").numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"Every image must be a whole PNG or JPEG file. Received: {file}") from error
