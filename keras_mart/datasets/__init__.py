"""Image classification data by name, as `tf.data` batches of images in [0, 1] and labels."""

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import batches, sources
from keras_mart.datasets.augmentation import AUGMENTATIONS, parse_augment
from keras_mart.datasets.extras import pseudo_labels
from keras_mart.datasets.fetching import refusal
from keras_mart.datasets.mixing import mix

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
UNBATCHED_CHUNK = 128  # examples gathered at once where single ones are asked for


class Description(NamedTuple):
    """Number of classes, (height, width, channels) of an image, and {split: number of examples}."""

    num_classes: int
    input_shape: tuple[int, int, int]
    num_examples: dict[str, int]


def describe(name, data_dir=None, image_size=None, cache=None):
    """Returns the `Description` of the dataset that `load` calls `name`; the other arguments are those of `load`."""
    num_classes, shape, splits = sources.read(name, data_dir, image_size, cache)
    return Description(num_classes, shape, {split: len(splits[split].labels) for split in SPLITS})


def class_names(name, data_dir=None, cache=None):
    """Returns the names of the classes of the dataset that `load` calls `name`, `None` where it has none.

    "folder:" has them, and most of "tfds:".
    """
    return sources.class_names(name, data_dir, cache)


def load_extra(name, data_dir=None):
    """Returns the arrays of extra training data, (images, labels), as `mix` takes them; labels may be `None`.

    Args:
        name: "npz:<path>" with the key `image` or `images` and, if the labels are known, `label` or `labels`, as
            generated images are published (Gowal et al., arXiv 2110.09468); or as in `load`: its train split.
        data_dir: as in `load`.

    Raises:
        ValueError: as `load` does.
    """
    return sources.read_extra(name, data_dir)


def load(
    name,
    split="train",
    *,
    batch_size=128,
    augment=None,
    with_index=False,
    shuffle=None,
    remainder=None,
    seed=0,
    epoch=None,
    first_batch=0,
    data_dir=None,
    image_size=None,
    cache=None,
):
    """Returns a `tf.data.Dataset` of ([batch, height, width, channels] float32 images in [0, 1], [batch] int32 labels).

    The order and the augmentation of an epoch are a function of the seed and the epoch's number only.

    Args:
        name: "digits" (in the package), "tfds:<name>", "npz:<path>" with the keys x_train, y_train, x_test and y_test,
            or "folder:<path>" with train/<class>/ and test/<class>/, or with <class>/ alone: then a fixed fifth is the
            test split. uint8 images are divided by 255; floats must be in [0, 1] already. Images of "tfds:" and
            "folder:" are decoded as they are needed, unless those of a split take at most 1 GiB; TFDS's are kept in
            memory as they are stored, or read where they are where TFDS prepared them as array_record. Arrays of
            "npz:" that are not compressed stay in the file, which must not change while it is in use.
        split: "train", "validation" or "test". Validation is a fixed tenth of the source's training data, 5,000 at
            most; train is the rest.
        batch_size: examples in a batch; `None` for single examples.
        augment: `None`, a name, or a sequence of names that follow one another; train only. Each image is changed
            on its own:

            - "crop" (pad by 4 zeros, crop at random) or "crop_flip" (and mirror a random half), which must be the
              first. With an `image_size` a random part is resized instead: 0.08 to 1 of the image's area, and of an
              aspect ratio from 3/4 to 4/3 (Szegedy et al., arXiv 1409.4842); of the parts' sizes within these bounds
              the height is uniform, as TensorFlow's `sample_distorted_bounding_box` has it.
            - "idbh": mirror, cropshift, a change of colour or shape, random erasing, as its strong variant of CIFAR-10
              (Li and Spratling, arXiv 2301.09879); it crops by itself.
            - "cutout": a square of half the shorter side becomes zero (DeVries and Taylor, arXiv 1708.04552).
            - "erasing": in half of the images a part becomes noise, by `keras.layers.RandomErasing`.
            - "randaugment": two of 14 operations, of random strength (Cubuk et al., arXiv 1909.13719).
            - "augmix": a mixture of three chains of operations (Hendrycks et al., arXiv 1912.02781).
            - "cutmix" and "mixup": `keras.layers.CutMix` with Beta(1, 1) and `keras.layers.MixUp` with Beta(0.2, 0.2)
              mix each image with another of its batch, and make labels soft, [batch, classes] float32. The order of the
              partners is drawn once for a batch, shares and parts for each image. CutMix's labels have the share of the
              part before it is rounded to pixels: of 32 pixels they are off by 0.01 on average, of 8 by 0.05.

            A Keras preprocessing layer may stand for a name; it draws from seeds of this dataset instead of its own.
            Keras's `RandAugment` draws its operations for a batch, and its `Equalization` takes a batch as one image.
        with_index: whether to give ((images, [batch] int32 index), labels); an example's index in its split never
            changes.
        shuffle: by default `True` for train and `False` for the others.
        remainder: what becomes of the examples that are left over behind the last full batch. "drop" leaves them out,
            so that all batches are of one size (others in each epoch where the order changes; what is less than a
            batch is one); "keep" makes a smaller batch of them. By default "drop" for a train split that is shuffled.
        seed: an integer for the order and the augmentation.
        epoch: called without arguments at the beginning of each iteration, returns the number of the epoch that it is;
            by default iterations number themselves, from 0. `fit` iterates a little beforehand, to look at the data.
        first_batch: number of batches to leave out at the beginning of each iteration, for what is left of an epoch.
        data_dir: where TFDS keeps its datasets; the other sources have no use for it.
        image_size: height and width in pixels that images are resized to: the shorter side by bilinear interpolation
            with antialiasing, and of the longer one the middle is kept. By default all must be of one size.
        cache: folder in which the decoded images of "tfds:" and "folder:" are kept, made where it is missing. What is
            read from there is what would be decoded, bit for bit.

    Raises:
        ValueError: for an unknown name, and data that are missing, damaged or of a wrong shape, type or range. What is
            wrong inside a file may show only when the file is decoded, and is then a `tf.errors.OpError` that names it;
            `refusal` gives the ValueError behind it.
    """
    checks.one_of(split, SPLITS, "split")
    augmentation = parse_augment(augment)
    if augmentation and split != "train":
        raise ValueError(f"`augment` is for split='train' alone. Received: split={split!r}, augment={augment!r}")
    if augmentation.mixes and with_index:
        raise ValueError(
            "Mixed images have no index: leave out `with_index`, or for MMA, which needs it, the mixing. "
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
    number = count // batch_size if drop else -(-count // (batch_size or 1))
    return batches.with_options(dataset, number - first_batch)


def load_examples(name, split, index, *, data_dir=None, image_size=None, cache=None):
    """Returns ([examples, height, width, channels] float32 images in [0, 1], [examples] int32 labels) of some examples.

    Args:
        index: [examples] integers, the examples' numbers in their split, as `with_index` tells them.
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
    """Maps the [2] int64 seed of an epoch to a dataset of its ([batch] int32 index, [2] int64 seed)."""

    def of_epoch(epoch_seed):
        index = tf.range(num_examples)
        if shuffle:
            index = tf.random.experimental.stateless_shuffle(index, epoch_seed)
        numbered = tf.data.Dataset.from_tensor_slices(index).batch(batch_size, drop_remainder=drop).enumerate()
        return numbered.map(lambda number, index: (index, tf.random.fold_in(epoch_seed, number)))

    return of_epoch
