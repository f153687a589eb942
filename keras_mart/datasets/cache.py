"""A cache of decoded images on disk, written atomically once and memory-mapped afterwards.

Each source has a folder with two files: `pixels`, the concatenated uint8 values of all images, and `index.npz`, with
the shapes, checksums and labels of the images of each part of the source. The size of `pixels` is checked when the
cache is opened, the checksum of an image whenever it is used, which costs little in comparison with its other
processing. So opening reads no pixels, and an error names the damaged image.
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

RULE = "A cache must stay unchanged; remove a damaged cache, and it is created again."
FORMAT_VERSION = 1  # of the files
CHUNK_SIZE = 256  # images that are decoded before they are written


def load_or_create(folder, name, source):
    """Returns the result of `source.read()` with images from the cache; writes them to the cache if they are missing.

    Args:
        folder: str or path of the cache; it is created if it is missing.
        name: name of the source, from which the name of its folder is made.
        source: a `Folder` or `TFDSDataset`, whose `fingerprint()` differs whenever its data do.

    Raises:
        ValueError: the cache is damaged.
        OSError: the cache cannot be written.
    """
    key = hashlib.sha256(repr((FORMAT_VERSION, name, source.fingerprint())).encode()).hexdigest()[:16]
    path = pathlib.Path(folder).expanduser().resolve() / f"{name.rpartition('/')[2].replace(':', '-')}-{key}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(path.with_name(".lock"), wait=True):  # several processes may need it at the same time
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
                    f"`cache` is only for uint8 images. Received: {images.dtype} images in {source.origin(part)}"
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
        raise ValueError(f"{RULE} Received: {len(pixels)} of {begin} bytes in {path / 'pixels'}")
    return parts, names if names is None else tuple(names.tolist())


def _reader(pixels, shapes, ends, sums, path):
    def image(number):
        found = pixels[ends[number] - shapes[number].prod() : ends[number]].reshape(shapes[number])
        if zlib.crc32(found) != sums[number]:
            raise ValueError(f"{RULE} Received: damaged pixels of image {number} in {path}")
        return found

    return image
