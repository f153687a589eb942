"""Extra training data, unlabelled or generated, as a fixed fraction of every batch."""

import itertools
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import batches, extras
from keras_mart.datasets.augmentation import Augment, parse_augment
from keras_mart.typing import ArrayLike


def mix(
    labelled: tf.data.Dataset,
    extra: tf.data.Dataset | ArrayLike | tuple[ArrayLike, ArrayLike | None],
    *,
    fraction: float = 0.5,
    weight: float = 1.0,
    network: keras.Model | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    epoch: Callable[[], int] | None = None,
    first_batch: int = 0,
) -> tf.data.Dataset:
    """Adds extra examples to every labelled batch, with a `weight` of their own in the training loss.

    To b labelled examples of a batch, round(b fraction / (1 - fraction)) extra ones are added: for batches of 128 with
    half of them extra, `labelled` has batches of 64. Labelled and extra examples alternate evenly, so that every
    replica's part of a batch contains both in the same proportion. An epoch is one pass over the labelled data. Its
    extra examples are drawn without replacement, in an order that depends only on the seed and the number of the epoch;
    if there are too few for an epoch, another permutation of them follows. Epochs draw independently of each other.

    The loss of a batch is (sum of the labelled losses + weight * sum of the extra losses) / number of both.

    Args:
        labelled: `tf.data.Dataset` of batches of (images, labels[, weights]) or ((images, index), labels[, weights]),
            as `load` returns them without a `first_batch`. Labels may be soft, [batch, classes] floats.
        extra: arrays of images or (images, labels), as `load_extra` returns them: [examples, height, width, channels]
            uint8 (divided by 255 when they are read) or floats in [0, 1]; [examples] integers. Or a finite
            `tf.data.Dataset` of batches of images, (images, labels) or ((images, index), labels), which is read into
            memory once, and sorted by its index if it has one.
        fraction: fraction of extra examples in a batch, between 0 and 1.
        weight: the weight gamma of an extra example. Labelled examples keep their weights, by default 1.
        network: a Keras classifier that returns logits, or a model that wraps one; it predicts labels for extra images
            without labels once, by `pseudo_labels`.
        augment: augmentation of the extra images, as in `load`. MixUp and CutMix mix extra images only with each other,
            so that each keeps its weight. They need soft labels in `labelled`, which determine the number of
            classes.
        seed: an integer for the order and the augmentation, which are independent of those of `load` with this seed.
        epoch: as in `load`; the same as that of `labelled`.
        first_batch: number of batches to skip at the beginning of each iteration, to resume in the middle of an epoch.

    Returns:
        A `tf.data.Dataset` of ([batch, height, width, channels] float32 images, [batch] int32 labels, [batch] float32
        weights). Labels are [batch, classes] float32 if those of `labelled` are soft. If `labelled` has an index,
        inputs are (images, [batch] int32 index): of n extra examples, example i has the index i, and labelled example i
        has n + i. The `num_examples` of `MMA` is then the number of both together.

    Raises:
        ValueError: arguments out of range; data of another form, shape or range; extra data without labels if `network`
            is None, or with labels otherwise.

    Reference: Carmon et al., arXiv 1905.13736; with MART: Wang et al., ICLR 2020; generated images: Gowal et al.,
    arXiv 2110.09468.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must lie between 0 and 1. Received: fraction={fraction}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"`weight` must be finite and not negative. Received: weight={weight}")
    augmentation = parse_augment(augment)
    shape, classes = _image_shape(labelled), _soft_classes(labelled)
    if augmentation.mixes and classes is None:
        raise ValueError(
            "To mix extra images, the labels of `labelled` must be soft: pass `load` an `augment` that mixes, too. "
            f"Received: augment={augment!r} and integer labels"
        )
    examples = extras.examples(extra, network)
    if classes is not None:
        checks.labels(examples.labels, classes, " of `extra`")
    augmentation.check(examples.images.shape[1:])
    if not shape.is_compatible_with(examples.images.shape[1:]):
        raise ValueError(
            "Labelled and extra images must have the same shape. "
            f"Received: {tuple(shape)} and {examples.images.shape[1:]}"
        )
    seeds = batches.epoch_seeds(seed, batches.EXTRA, epoch or itertools.count().__next__)
    seeds = seeds.flat_map(lambda epoch_seed: tf.data.Dataset.from_tensors(epoch_seed).repeat())
    start, draw = _extra_sampler(len(examples.labels), fraction)
    dataset = tf.data.Dataset.zip(labelled, seeds).enumerate().scan(start, draw).skip(first_batch)
    dataset = dataset.map(_batch_joiner(examples, augmentation, weight, classes), num_parallel_calls=tf.data.AUTOTUNE)
    cardinality = int(labelled.cardinality())
    return batches.with_options(dataset, cardinality - first_batch if cardinality >= 0 else cardinality)


def _image_shape(labelled):
    """Returns the [height, width, channels] of the images of labelled batches."""
    rule = "`labelled` must be a tf.data.Dataset of batches of (images, labels) or ((images, index), labels)."
    if not isinstance(labelled, tf.data.Dataset):
        raise ValueError(f"{rule} Received: {type(labelled).__name__}")
    images, _, labels, _ = checks.unpacked(labelled.element_spec)
    if labels is None or not extras.are_batches(images):
        raise ValueError(f"{rule} Received: {labelled.element_spec}")
    if labels.shape.rank is not None and _soft_classes(labelled) is None:
        like = np.zeros([1, *(size or 1 for size in labels.shape[1:])], labels.dtype.as_numpy_dtype)
        checks.labels(like, 1, " of an example of `labelled`")
    return images.shape[1:]


def _soft_classes(labelled):
    """Returns the number of classes of soft labels, `None` for integer labels.

    Raises:
        ValueError: the dataset has soft labels and an index.
    """
    _, index, labels, _ = checks.unpacked(labelled.element_spec)
    if labels.shape.rank is None or not (labels.dtype.is_floating and checks.are_soft(labels)):
        return None
    if index is not None:
        raise ValueError("`labelled` must not have both soft labels and an index. Received: both")
    return labels.shape[-1]


def _extra_sampler(count, fraction):
    """Returns arguments of `tf.data.Dataset.scan`, a state and a function, that draw each batch's extra examples.

    The state contains the rest of the newest permutation of the `count` extra examples.
    """

    def draw(state, numbered):
        number, (element, epoch_seed) = numbered
        size = tf.cast(tf.shape(checks.unpacked(element)[2])[0], tf.float64)
        drawn = tf.cast(tf.round(size * (fraction / (1 - fraction))), tf.int32)

        def append_permutation(rest, permutations):
            seed = tf.random.fold_in(epoch_seed, permutations)
            shuffled = tf.random.experimental.stateless_shuffle(tf.range(count), seed)
            return tf.concat([rest, shuffled], 0), permutations + 1

        rest, permutations = tf.while_loop(
            lambda rest, _: tf.size(rest) < drawn, append_permutation, state,
            shape_invariants=(tf.TensorShape([None]), tf.TensorShape([])),
        )  # fmt: skip
        return (rest[drawn:], permutations), (element, rest[:drawn], tf.random.fold_in(epoch_seed, number))

    return (tf.zeros([0], tf.int32), tf.constant(0)), draw


def _batch_joiner(examples, augment, weight, classes):
    """Returns a function from a labelled batch, indices of extra examples and a [2] seed to the mixed batch."""
    gather, count = batches.gatherer(examples, augment, classes=classes), len(examples.labels)

    def join(element, extra_index, crop_seed):
        images, index, labels, weights = checks.unpacked(element)
        labels = tf.reshape(tf.cast(labels, tf.int32), [-1]) if classes is None else tf.cast(labels, tf.float32)
        extra_images, extra_labels = gather(extra_index, crop_seed)
        own, added = tf.shape(labels)[:1], tf.shape(extra_labels)[:1]
        weights = tf.ones(own) if weights is None else tf.reshape(weights, [-1])
        sizes = [tf.cast(size[0], tf.float32) for size in (own, added)]
        places = [(tf.range(size) + 0.5) / size for size in sizes]
        order = tf.argsort(tf.concat(places, 0), stable=True)

        def joined(one, other):
            return tf.gather(tf.concat([one, other], 0), order)

        images = joined(tf.cast(images, tf.float32), extra_images)
        weights = joined(tf.cast(weights, tf.float32), tf.fill(added, tf.cast(weight, tf.float32)))
        inputs = images if index is None else (images, joined(tf.cast(index, tf.int32) + count, extra_index))
        return inputs, joined(labels, extra_labels), weights

    return join
