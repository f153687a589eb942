"""Images that are made when they are asked for, and rows of images that are not copied."""

import mmap

import numpy as np

SIZES, CHANNELS = slice(0, 3), slice(2, 3)  # of (height, width, channels)


class LazyImages:
    """What stands for a [examples, height, width, channels] uint8 array, of which each image is made when asked for.

    Args:
        image: returns the [height, width, channels] image of a number. It is called from several threads.
        shapes: [examples, 3] integers, (height, width, channels) of each.
        name: returns what an image of a number is called in messages.
        origin: where they come from, for messages.
        stored: array that the images are parts of, where there is one.

    `shape` has `None` in place of what differs from image to image. `images[number]` is one image, `images[numbers]`
    are several, of one size; `np.asarray` makes all.
    """

    def __init__(self, image, shapes, name, origin, dtype=np.uint8, stored=None):
        self.image, self.name, self.origin = image, name, origin
        self.shapes = np.reshape(shapes, [-1, 3]).astype(np.int32)
        self.dtype, self.stored = np.dtype(dtype), stored
        sizes = [np.unique(column) for column in self.shapes.T]
        self.shape = (len(shapes), *(None if len(each) > 1 else int(max(each, default=1)) for each in sizes))

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        if np.ndim(index) == 0:
            return self._one(index)
        images = np.empty([len(index), *self.shape[1:]], self.dtype)
        for place, number in enumerate(index):
            images[place] = self._one(number)
        return images

    def __array__(self, dtype=None, copy=None):
        return self[np.arange(len(self))].astype(dtype or self.dtype, copy=False)

    def _one(self, number):
        found, shape = self.image(number), tuple(self.shapes[number].tolist())
        if found.shape != shape:
            raise ValueError(
                "An image must not change while it is in use, and be of the size that its header says. "
                f"Received: {found.shape} in place of {shape} for {self.name(number)} in {self.origin}"
            )
        return found


class RowView:
    """The rows of images that have some numbers, in place of a copy of them.

    Args:
        images: array, `LazyImages` or `RowView`.
        rows: [examples] integers.
    """

    def __init__(self, images, rows):
        if isinstance(images, RowView):
            images, rows = images.images, images.rows[rows]
        self.images, self.rows = images, rows
        self.dtype, self.shape = images.dtype, (len(rows), *images.shape[1:])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.images[self.rows[index]]

    def __array__(self, dtype=None, copy=None):
        return self.images[self.rows].astype(dtype or self.dtype, copy=False)


def release_memory(images):
    """Gives back the memory of images that are mapped from a file: it counts as this process's once it was read.

    What was read stays in the system's own cache as long as there is room.
    """
    images = images.images if isinstance(images, RowView) else images
    array = images.stored if isinstance(images, LazyImages) else images
    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    if array is not None and isinstance(array.base, mmap.mmap) and not array.flags.writeable:  # no changes are lost
        array.base.madvise(mmap.MADV_DONTNEED)


def check_same_shape(images, what):
    """Raises ValueError with the names of two images that differ in `what`, `SIZES` or `CHANNELS`."""
    images = images.images if isinstance(images, RowView) else images
    if not isinstance(images, LazyImages) or None not in images.shape[1:][what]:
        return
    other = int(np.argmax((images.shapes != images.shapes[0])[:, what].any(axis=1)))
    one, another = (f"{tuple(images.shapes[number].tolist())} for {images.name(number)}" for number in (0, other))
    raise ValueError(
        f"All images must be of one size and number of channels; `image_size` resizes them, to one size. "
        f"Received: {one} and {another} in {images.origin}"
    )
