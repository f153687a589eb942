"""Folders of PNG and JPEG files, with one subfolder for each class."""

import concurrent.futures
import functools
import os

import numpy as np

from keras_mart.datasets import encoded
from keras_mart.datasets.arrays import examples
from keras_mart.datasets.images import LazyImages

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "test")
AS_STORED, RGB = 0, 3  # the `channels` argument of TensorFlow's decoder


class Folder:
    """A folder of images, whose files are listed once.

    Args:
        path: a folder with `train/<class>/` and `test/<class>/`, or only `<class>/`. Classes are numbered in the order
            of their names.

    Raises:
        ValueError: the folder does not exist, or has another structure.
    """

    def __init__(self, path):
        if not path.is_dir():
            raise ValueError(f"A `folder:` dataset must be an existing folder. Received: {path}")
        self.parts = {"whole": path}
        if any((path / split).is_dir() for split in SPLITS):
            self.parts = {split: path / split for split in SPLITS}
        for split, part in self.parts.items():
            if not part.is_dir():
                raise ValueError(f"A folder with train/ or test/ must have both. Received: no {split}/ in {path}")
        listed = {split: _listed(part) for split, part in self.parts.items()}
        self.class_names = tuple(next(iter(listed.values())))
        unknown = sorted(set(listed.get("test", ())) - set(self.class_names))
        if unknown:
            raise ValueError(f"Every class in test/ must also be in train/. Received: {unknown} in {path / 'test'}")
        self.files = {
            split: [(file, label) for label, name in enumerate(self.class_names) for file in classes.get(name, ())]
            for split, classes in listed.items()
        }
        for split, part in self.parts.items():
            if not self.files[split]:
                raise ValueError(
                    f"A folder must contain <class>/ folders with PNG or JPEG images. Received: none in {part}"
                )

    def fingerprint(self):
        """Returns values that identify the data: the relative path, size and modification time of each file."""
        found = []
        for part, files in self.files.items():
            stats = ((path, os.stat(path)) for path, _ in files)
            found += [(os.path.relpath(path, self.parts[part]), of.st_size, of.st_mtime_ns) for path, of in stats]
        return found

    def name(self, split, number):
        """Returns the name of an image for error messages."""
        return os.path.relpath(self.files[split][number][0], self.parts[split])

    def origin(self, split):
        """Returns where the images of a split come from, for error messages."""
        return self.parts[split]

    def read(self):
        """Returns ({"train": Examples, "test": Examples} or {"whole": Examples}, class names).

        If the images differ in their number of channels (grey, transparent), all become RGB.
        """
        with concurrent.futures.ThreadPoolExecutor() as threads:
            shapes = {part: np.array(list(threads.map(_shape, self._paths(part)))) for part in self.parts}
        channels = np.unique(np.concatenate([each[:, 2] for each in shapes.values()]))
        channels = RGB if len(channels) > 1 else int(channels[0])
        return {part: self._read(part, shapes[part], channels) for part in self.parts}, self.class_names

    def _paths(self, part):
        return [path for path, _ in self.files[part]]

    def _read(self, part, shapes, channels):
        paths, name, origin = self._paths(part), functools.partial(self.name, part), self.origin(part)
        shapes = np.concatenate([shapes[:, :2], np.full([len(paths), 1], channels)], axis=1)
        images = LazyImages(lambda number: _decoded(paths[number], channels), shapes, name, origin)
        return examples(images, [label for _, label in self.files[part]], origin)


def quick_fingerprint(path):
    """Returns sizes and modification times of a file or of folders, which change when files are added or removed."""
    folders = [each for part in (path, *map(path.joinpath, SPLITS)) for each in _folders(part)]
    return tuple((each.stat().st_size, each.stat().st_mtime_ns) for each in (path, *folders) if each.exists())


def _folders(path):
    return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []


def _listed(path):
    """Returns {class: [paths of its images]}, sorted by name, for the subfolders that contain images."""
    found = {folder.name: _image_files(folder) for folder in _folders(path)}
    return {name: files for name, files in found.items() if files}


def _image_files(folder):
    # Hidden files are not images, but metadata such as macOS's "._name.png".
    names = (name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and not name.startswith("."))
    return [os.path.join(folder, name) for name in sorted(names)]


def _shape(path):
    with open(path, "rb") as file:
        return encoded.header_shape(file) or _decoded(path, AS_STORED).shape


def _decoded(path, channels):
    try:
        with open(path, "rb") as file:
            return encoded.decode_checked(functools.partial(encoded.decode, channels=channels), file.read(), path)
    except OSError as error:
        raise ValueError(
            f"Every image must remain in its place while it is in use. Received: {path} ({error.strerror})"
        ) from error
