"""Images that are decoded on access, and views of selected images without copies."""

import mmap

import numpy as np

SIZES, CHANNELS = slice(0, 3), slice(2, 3)  # of (height, width, channels)


class LazyImages:
    """A read-only [examples, height, width, channels] array whose images are decoded on access.

    `shape` has `None` for sizes that differ between images. `images[number]` returns one image, `images[numbers]`
    several of the same size, `np.asarray(images)` all.

    Args:
        image: function that returns the [height, width, channels] image with a given index; called from several
            threads.
        shapes: [examples, 3] integers, the (height, width, channels) of each image.
        name: function that returns the name of an image, given its index, for error messages.
        origin: where the images come from, for error messages.
        dtype: of the images.
        stored: the array that contains the images, if there is one.
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
                "An image must not change while it is in use, and must have the size that its header states. "
                f"Received: {found.shape} instead of {shape} for {self.name(number)} in {self.origin}"
            )
        return found


class RowView:
    """A view of selected images, which are not copied.

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
    """Releases the pages of memory-mapped images, which count as memory of this process once they have been read.

    They stay in the page cache of the operating system as long as memory is free.
    """
    images = images.images if isinstance(images, RowView) else images
    array = images.stored if isinstance(images, LazyImages) else images
    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    # A writable map could lose changes.
    if array is not None and isinstance(array.base, mmap.mmap) and not array.flags.writeable:
        array.base.madvise(mmap.MADV_DONTNEED)


def check_same_shape(images, what):
    """Raises ValueError with the names of two images that differ in `what`, which is `SIZES` or `CHANNELS`."""
    images = images.images if isinstance(images, RowView) else images
    if not isinstance(images, LazyImages) or None not in images.shape[1:][what]:
        return
    other = int(np.argmax((images.shapes != images.shapes[0])[:, what].any(axis=1)))
    one, another = (f"{tuple(images.shapes[number].tolist())} for {images.name(number)}" for number in (0, other))
    raise ValueError(
        "All images must have the same size and number of channels; `image_size` resizes them. "
        f"Received: {one} and {another} in {images.origin}"
    )
