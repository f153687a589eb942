"""Batches of examples, for `load` and `mix`."""

import numpy as np
import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import augmentation, cropping, fetching

# The random streams of one seed: for the examples of `load`, and for those that `mix` adds.
LABELLED, EXTRA = 0, 1
# The elements of padded datasets are (inputs, labels, weights, real).
PADDED_LENGTH = 4


def epoch_seeds(seed, stream, epoch):
    """Returns a dataset of one element, the [2] int64 seed of epoch `epoch()`, which is called when it is read."""

    def of_epoch(_):
        number = tf.ensure_shape(tf.numpy_function(lambda: np.int64(epoch()), [], tf.int64), [])
        return tf.random.fold_in(tf.constant([seed, stream], tf.int64), number)

    return tf.data.Dataset.range(1).map(of_epoch)


def gatherer(examples, augment=augmentation.NO_AUGMENTATION, image_size=None, classes=None):
    """Returns a function from [batch] indices and a [2] seed to ([batch, ...] images in [0, 1], [batch] labels).

    Args:
        examples: `Examples` with labels.
        augment: an `Augmentation`.
        image_size: as in `load`.
        classes: number of classes; if given, labels are one-hot, [batch, classes] float32.
    """
    images = examples.images
    crop, flip = augment.crop, augment.crop == "crop_flip"
    finish = augment.steps()
    with tf.device("CPU"):  # keeps the data out of a GPU's memory
        labels = tf.constant(examples.labels)

    def whole(index, seed):
        batch = fetching.fetch(images, index, images.shape[1:])
        if crop:
            batch = cropping.crop(batch, seed, flip)
        return scaled(batch)

    def resized(index, seed):
        def of_one(place):
            image = fetching.fetch(images, index[place], [None, None, images.shape[-1]])
            if crop is None:
                return cropping.resized(image, image_size)
            own = tf.random.fold_in(seed, place)
            return cropping.random_resized_crop(image, image_size, own, flip)

        shape = tf.TensorSpec([image_size, image_size, images.shape[-1]])
        batch = tf.map_fn(of_one, tf.range(tf.size(index)), fn_output_signature=shape)
        batch = tf.ensure_shape(batch, [*index.shape, *shape.shape])
        return tf.clip_by_value(batch / 255 if images.dtype == np.uint8 else batch, 0, 1)

    def gather(index, seed):
        batch = (whole if image_size is None else resized)(index, seed)
        own = tf.gather(labels, index)
        return finish(batch, own if classes is None else tf.one_hot(own, classes), seed)

    return gather


def scaled(images):
    """Returns uint8 images as float32 in [0, 1]; other images are returned unchanged."""
    return tf.cast(images, tf.float32) / 255 if images.dtype == tf.uint8 else images


def with_options(dataset, cardinality):
    """Sets the options that all datasets have, and the number of batches unless it is negative, which means unknown."""
    if cardinality >= 0:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(cardinality))
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # otherwise the end of an iterator waits for the autotuner, for up to a minute
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def pad_batches(dataset):
    """Pads smaller batches of a dataset with zeros to the largest size before them.

    The elements become (inputs, labels, weights, real), with `real` [batch] float32, 1 for examples and 0 for padding.
    """

    def pad(size, element):
        images, index, labels, weights = checks.unpacked(element)
        count = tf.shape(images)[0]
        size = tf.maximum(size, count)
        ones = tf.ones([count])
        tensors = [images, labels, ones if weights is None else weights, ones, *([] if index is None else [index])]
        tensors = [tf.pad(each, [[0, size - count]] + [[0, 0]] * (len(each.shape) - 1)) for each in tensors]
        images, labels, weights, real, *index = tensors
        return size, ((images, *index) if index else images, labels, weights, real)

    images, index, *others = checks.unpacked(dataset.element_spec)
    if any(each is not None and each.shape.rank is None for each in (images, index, *others)):
        return dataset
    return dataset.scan(tf.constant(0), pad).prefetch(tf.data.AUTOTUNE)
