"""Decoded images on disk: made once, whole or not at all, and mapped into memory from then on.

A folder for each source: `pixels`, the uint8 values of all images one behind the other, and `index.npz`: for each part
of the source the images' shapes, sums and labels. Whether `pixels` is of the right size is checked when it is opened,
which costs nothing; each image's own sum whenever the image is used, which costs little beside the rest that is done
with it. So nothing is read that is not needed, and what is damaged is told by its number.
"""

import concurrent.futures
import functools
import hashlib
import pathlib
import zipfile
import zlib

import numpy as np

from keras_mart import files
from keras_mart.datasets.arrays import Examples
from keras_mart.datasets.images import LazyImages

RULE = "A cache must stay as it was made; remove it, and it is made anew."
FORMAT_VERSION = 1  # other numbers for other forms of the files
CHUNK_SIZE = 256  # images decoded before they are written


def load_or_create(folder, name, source):
    """Returns what `source.read()` does, of decoded images on disk; the first time they are put there.

    Args:
        folder: str or path of the cache; it is made where it is missing.
        name: of the source, for people.
        source: has `fingerprint()`, which tells states of it from each other, `read()`, and the names for messages.

    Raises:
        ValueError: the cache is damaged.
        OSError: it cannot be written.
    """
    key = hashlib.sha256(repr((FORMAT_VERSION, name, source.fingerprint())).encode()).hexdigest()[:16]
    path = pathlib.Path(folder).expanduser().resolve() / f"{name.rpartition('/')[2].replace(':', '-')}-{key}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(path.with_name(".lock"), wait=True):  # several processes may want it at once
            files.remove_unfinished(path.parent, exclusive=True)
            if not path.exists():
                with files.atomic_folder(path) as unfinished:
                    _write(unfinished, source)
    return _opened(path, source)


def _write(folder, source):
    parts, class_names = source.read()
    index = {} if class_names is None else {"class_names": np.array(class_names)}
    with open(folder / "pixels", "wb") as file, concurrent.futures.ThreadPoolExecutor() as threads:
        for part, (images, labels) in parts.items():
            if images.dtype != np.uint8:
                raise ValueError(
                    f"A cache is for uint8 images: leave `cache` out. Received: {images.dtype} in {source.origin(part)}"
                )
            sums, shapes = [], []
            for first in range(0, len(images), CHUNK_SIZE):
                for image in threads.map(images.__getitem__, range(first, min(first + CHUNK_SIZE, len(images)))):
                    file.write(image)
                    sums.append(zlib.crc32(image))
                    shapes.append(image.shape)
            index |= {f"{part}/shapes": np.array(shapes), f"{part}/sums": np.array(sums), f"{part}/labels": labels}
    np.savez(folder / "index.npz", **index)


def _opened(path, source):
    try:
        with np.load(path / "index.npz") as file:
            index = dict(file)
        pixels = np.asarray(np.memmap(path / "pixels", np.uint8, "r"))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{RULE} Received: {path} ({error})") from error
    names, parts, begin = index.pop("class_names", None), {}, 0
    for part in dict.fromkeys(key.partition("/")[0] for key in index):
        shapes, sums, labels = (index[f"{part}/{what}"] for what in ("shapes", "sums", "labels"))
        ends = begin + np.cumsum(shapes.prod(axis=1, dtype=np.int64))
        image = _reader(pixels, shapes, ends, sums, path)
        images = LazyImages(image, shapes, functools.partial(source.name, part), source.origin(part), stored=pixels)
        parts[part] = Examples(images, labels)
        begin = ends[-1]
    if begin != len(pixels):
        raise ValueError(f"{RULE} Received: {len(pixels)} bytes of {begin} in {path / 'pixels'}")
    return parts, names if names is None else tuple(names.tolist())


def _reader(pixels, shapes, ends, sums, path):
    def image(number):
        found = pixels[ends[number] - shapes[number].prod() : ends[number]].reshape(shapes[number])
        if zlib.crc32(found) != sums[number]:
            raise ValueError(f"{RULE} Received: damaged pixels of image {number} in {path}")
        return found

    return image
