"""Image classification data by name, as `tf.data` batches of images in [0, 1] and labels."""

from typing import NamedTuple

import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import augmentation, sources

SPLITS = ("train", "validation", "test")
AUGMENTATIONS = ("crop_flip", "crop")
UNBATCHED_CHUNK = 128  # examples gathered at once where single ones are asked for


class Description(NamedTuple):
    """Number of classes, (height, width, channels) of an image, and {split: number of examples}."""

    num_classes: int
    input_shape: tuple[int, int, int]
    num_examples: dict[str, int]


def describe(name, data_dir=None):
    """Returns the `Description` of the dataset that `load` calls `name`."""
    num_classes, splits = sources.read(name, data_dir)
    return Description(
        num_classes, splits["train"].images.shape[1:], {split: len(splits[split].labels) for split in SPLITS}
    )


def load(
    name,
    split="train",
    *,
    batch_size=128,
    augment=None,
    with_index=False,
    shuffle=None,
    seed=0,
    data_dir=None,
):
    """Returns a `tf.data.Dataset` of ([batch, height, width, channels] float32 images in [0, 1], [batch] int32 labels).

    The order and the crops are new in every epoch, that is at every iteration, and the same in every run.

    Args:
        name: "digits" (in the package), "tfds:<name>", "npz:<path>" with the keys x_train, y_train, x_test and y_test,
            or "folder:<path>" with train/<class>/ and test/<class>/, or with <class>/ alone: then a fixed fifth is the
            test split. uint8 images are divided by 255; floats must be in [0, 1] already.
        split: "train", "validation" or "test". Validation is a fixed tenth of the source's training data, 5,000 at
            most; train is the rest.
        batch_size: examples in a batch, the last one may have fewer; `None` for single examples.
        augment: `None`, "crop" (pad by 4 zeros, crop at random) or "crop_flip" (and mirror a random half); train only.
        with_index: whether to give ((images, [batch] int32 index), labels); an example's index in its split never
            changes.
        shuffle: by default `True` for train and `False` for the others.
        seed: an integer for the order and the crops. `tf.random.set_seed` changes them too.
        data_dir: where TFDS keeps its datasets; the other sources have no use for it.

    Raises:
        ValueError: for an unknown name, and data that are missing, damaged or of a wrong shape, type or range.
    """
    checks.one_of(split, SPLITS, "split")
    if augment is not None:
        checks.one_of(augment, AUGMENTATIONS, "augment")
        if split != "train":
            raise ValueError(f"`augment` is for split='train' alone. Received: split={split!r}, augment={augment!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` must be positive or None. Received: batch_size={batch_size}")
    examples = sources.read(name, data_dir).splits[split]
    with tf.device("CPU"):  # Where there is a GPU, the data must not fill its memory.
        images, labels = tf.constant(examples.images), tf.constant(examples.labels)

    def gather(index, batch_seed):
        batch = tf.gather(images, index)
        if augment:
            batch = augmentation.crop(batch, batch_seed, flip=augment == "crop_flip")
        if images.dtype == tf.uint8:
            batch = tf.cast(batch, tf.float32) / 255
        return (batch, index) if with_index else batch, tf.gather(labels, index)

    shuffle = split == "train" if shuffle is None else shuffle
    dataset = _index_batches(len(labels), batch_size or UNBATCHED_CHUNK, shuffle, seed)
    dataset = dataset.map(gather, num_parallel_calls=tf.data.AUTOTUNE)
    if batch_size is None:
        dataset = dataset.unbatch()
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-len(labels) // (batch_size or 1))))
    return dataset.with_options(_options()).prefetch(tf.data.AUTOTUNE)


def _epoch_seeds(seed):
    """One number for an epoch, another one at each iteration: all randomness of an epoch comes from here."""
    return tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)


def _index_batches(num_examples, batch_size, shuffle, seed):
    """Yields ([batch] int32 index, [2] int64 seed) of one epoch."""

    def epoch(epoch_seed):
        index = tf.range(num_examples)
        if shuffle:
            index = tf.random.experimental.stateless_shuffle(index, [epoch_seed, 0])
        batches = tf.data.Dataset.from_tensor_slices(index).batch(batch_size)
        # From 1 on, as 0 is the order's.
        return batches.enumerate(start=1).map(lambda number, index: (index, tf.stack([epoch_seed, number])))

    return _epoch_seeds(seed).flat_map(epoch)


def _options():
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options
