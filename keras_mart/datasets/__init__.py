"""Image classification datasets by name, as `tf.data` batches of images in [0, 1] and labels."""

import itertools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import batches, sources
from keras_mart.datasets.arrays import Examples
from keras_mart.datasets.augmentation import AUGMENTATIONS, Augment, parse_augment
from keras_mart.datasets.extras import pseudo_labels
from keras_mart.datasets.fetching import refusal
from keras_mart.datasets.mixing import mix
from keras_mart.typing import ArrayLike

__all__ = [
    "AUGMENTATIONS",
    "SPLITS",
    "Description",
    "class_names",
    "describe",
    "load",
    "load_examples",
    "load_extra",
    "mix",
    "pseudo_labels",
    "refusal",
]

SPLITS = ("train", "validation", "test")
UNBATCHED_CHUNK = 128  # examples read together when single examples are requested


class Description(NamedTuple):
    """The number of classes, the (height, width, channels) of the images, and {split: number of examples}."""

    num_classes: int
    input_shape: tuple[int, int, int]
    num_examples: dict[str, int]


def describe(
    name: str,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    cache: str | os.PathLike | None = None,
) -> Description:
    """Returns the `Description` of a dataset. The arguments are those of `load`."""
    num_classes, shape, splits = sources.read(name, data_dir, image_size, cache)
    return Description(num_classes, shape, {split: len(splits[split].labels) for split in SPLITS})


def class_names(
    name: str, data_dir: str | os.PathLike | None = None, cache: str | os.PathLike | None = None
) -> tuple[str, ...] | None:
    """Returns the class names of a dataset, `None` if it has none. The arguments are those of `load`.

    "folder:" datasets have class names, and so do most "tfds:" datasets.
    """
    return sources.class_names(name, data_dir, cache)


def load_extra(name: str, data_dir: str | os.PathLike | None = None) -> Examples:
    """Returns extra training data for `mix` as arrays (images, labels); labels may be `None`.

    Args:
        name: "npz:<path>" with the key `image` or `images` and, if the labels are known, `label` or `labels`, the form
            in which generated images are published (Gowal et al., arXiv 2110.09468); or a name as in `load`, whose
            train split is returned.
        data_dir: as in `load`.

    Raises:
        ValueError: as `load` does.
    """
    return sources.read_extra(name, data_dir)


def load(
    name: str,
    split: str = "train",
    *,
    batch_size: int | None = 128,
    augment: Augment | None = None,
    with_index: bool = False,
    shuffle: bool | None = None,
    remainder: str | None = None,
    seed: int = 0,
    epoch: Callable[[], int] | None = None,
    first_batch: int = 0,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    cache: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Returns a `tf.data.Dataset` of ([batch, height, width, channels] float32 images in [0, 1], [batch] int32 labels).

    The order and the augmentation of an epoch depend only on the seed and the number of the epoch.

    Args:
        name: "digits" (included in the package), "tfds:<name>", "npz:<path>" with the keys x_train, y_train, x_test and
            y_test, or "folder:<path>". The folder has train/<class>/ and test/<class>/, or only <class>/; a fixed fifth
            of the images is then the test split. uint8 images are divided by 255; floats must be in [0, 1]. The images
            of "tfds:" and "folder:" are decoded when they are needed, or once if those of a split take at most 1 GiB.
            TFDS images are held in memory as encoded files, or read from the disk if TFDS prepared them as
            array_record. Uncompressed arrays of "npz:" stay in the file, which must not change while it is in use.
        split: "train", "validation" or "test". Validation is a fixed tenth of the training data, at most 5,000
            examples; train is the rest.
        batch_size: number of examples in a batch; `None` for single examples.
        augment: `None`, a name, or a sequence of names, applied in order; only for train. Random choices are made for
            each image separately:

            - "crop" (pads by 4 zeros and crops at random) or "crop_flip" (which also mirrors half of the images); it
              must be the first. With an `image_size`, a random part is resized instead, with 0.08 to 1 of the image's
              area and an aspect ratio from 3/4 to 4/3 (Szegedy et al., arXiv 1409.4842). Within these bounds the height
              of the part is uniform, as in TensorFlow's `sample_distorted_bounding_box`.
            - "idbh": mirroring, cropshift, a change of colour or shape, and random erasing, as in the strong variant
              for CIFAR-10 (Li and Spratling, arXiv 2301.09879). It includes a crop.
            - "cutout": sets a square of half the shorter side to zero (DeVries and Taylor, arXiv 1708.04552).
            - "erasing": replaces a part of half of the images by noise, with `keras.layers.RandomErasing`.
            - "randaugment": two of 14 operations, of random strength (Cubuk et al., arXiv 1909.13719).
            - "augmix": a mixture of three chains of operations (Hendrycks et al., arXiv 1912.02781).
            - "cutmix" and "mixup": mix each image with another one of its batch, with `keras.layers.CutMix` and
              Beta(1, 1) or `keras.layers.MixUp` and Beta(0.2, 0.2), and make labels soft, [batch, classes] float32. The
              permutation that pairs the images is drawn once for a batch, ratios and boxes for each image. CutMix's
              labels use the box's area before it is rounded to pixels: for images of 32 pixels they are off by 0.01 on
              average, for 8 by 0.05.

            Keras preprocessing layers may be given in place of names; they draw from seeds of this dataset instead of
            their own. Keras's `RandAugment` draws its operations once for a batch, and its `Equalization` treats a
            batch as one image.
        with_index: whether to return ((images, [batch] int32 index), labels). The index of an example in its split
            never changes.
        shuffle: by default `True` for train and `False` for the other splits.
        remainder: how to treat the examples after the last full batch. "drop" omits them, so that all batches have one
            size; if the order changes, other examples are omitted in each epoch. Data that do not fill a batch are
            never dropped. "keep" returns them as a smaller batch. By default "drop" for a shuffled train split, "keep"
            otherwise.
        seed: an integer for the order and the augmentation.
        epoch: a function without arguments that returns the number of the epoch; it is called when an iteration begins.
            By default iterations are counted from 0. `fit` iterates over a few batches beforehand to check the data.
        first_batch: number of batches to skip at the beginning of each iteration, to resume in the middle of an epoch.
        data_dir: where TFDS keeps its datasets; unused by other sources.
        image_size: height and width in pixels that images are resized to: the shorter side is resized by bilinear
            interpolation with antialiasing, and the longer side is cropped at the centre. By default all images must
            have the same size.
        cache: folder for the decoded images of "tfds:" and "folder:", created if it is missing. Images that are read
            from it equal the decoded ones bit for bit.

    Raises:
        ValueError: an unknown name, or data that are missing, damaged or of a wrong shape, dtype or range. Errors in a
            file may be found only when it is decoded; they are then raised as a `tf.errors.OpError` that names the
            file, and `refusal` returns the ValueError that caused it.
    """
    checks.one_of(split, SPLITS, "split")
    augmentation = parse_augment(augment)
    if augmentation and split != "train":
        raise ValueError(f"`augment` applies only to split='train'. Received: split={split!r}, augment={augment!r}")
    if augmentation.mixes and with_index:
        raise ValueError(
            "`with_index` must be False if `augment` mixes images: mixed images have no index, so MMA cannot use them. "
            f"Received: with_index=True, augment={augment!r}"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` must be positive or None. Received: batch_size={batch_size}")
    shuffle = split == "train" if shuffle is None else shuffle
    remainder = ("drop" if shuffle and split == "train" else "keep") if remainder is None else remainder
    checks.one_of(remainder, ("drop", "keep"), "remainder")
    if first_batch and batch_size is None:
        raise ValueError(f"`first_batch` needs a `batch_size`. Received: first_batch={first_batch}, batch_size=None")
    source = sources.read(name, data_dir, image_size, cache)
    augmentation.check(source.input_shape)
    examples = source.splits[split]
    classes = source.num_classes if augmentation.mixes else None
    gather = batches.gatherer(examples, augmentation, image_size, classes)

    def batch_of(index, seed):
        images, labels = gather(index, seed)
        return (images, index) if with_index else images, labels

    count = len(examples.labels)
    drop = remainder == "drop" and count >= (batch_size or count + 1)
    seeds = batches.epoch_seeds(seed, batches.LABELLED, epoch or itertools.count().__next__)
    dataset = seeds.flat_map(_index_batches(count, batch_size or UNBATCHED_CHUNK, shuffle, drop))
    dataset = dataset.skip(first_batch).map(batch_of, num_parallel_calls=tf.data.AUTOTUNE)
    if batch_size is None:
        dataset = dataset.unbatch()
    size = batch_size or 1
    number = count // size if drop else -(-count // size)
    return batches.with_options(dataset, number - first_batch)


def load_examples(
    name: str,
    split: str,
    index: ArrayLike,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    cache: str | os.PathLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns selected examples: [examples, height, width, channels] float32 images in [0, 1], [examples] int32 labels.

    Args:
        index: [examples] integers, the indices of the examples in their split, as `with_index` returns them.
        name, split, data_dir, image_size, cache: as in `load`.

    Raises:
        ValueError: as `load` does.
    """
    checks.one_of(split, SPLITS, "split")
    gather = batches.gatherer(sources.read(name, data_dir, image_size, cache).splits[split], image_size=image_size)
    dataset = tf.data.Dataset.from_tensor_slices(np.asarray(index, np.int32)).batch(UNBATCHED_CHUNK)
    dataset = dataset.map(lambda index: gather(index, None), num_parallel_calls=tf.data.AUTOTUNE)
    images, labels = zip(*batches.with_options(dataset, len(dataset)).as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _index_batches(num_examples, batch_size, shuffle, drop):
    """Returns a function from an epoch's [2] int64 seed to its dataset of ([batch] int32 index, [2] int64 seed)."""

    def of_epoch(epoch_seed):
        index = tf.range(num_examples)
        if shuffle:
            index = tf.random.experimental.stateless_shuffle(index, epoch_seed)
        numbered = tf.data.Dataset.from_tensor_slices(index).batch(batch_size, drop_remainder=drop).enumerate()
        return numbered.map(lambda number, index: (index, tf.random.fold_in(epoch_seed, number)))

    return of_epoch
