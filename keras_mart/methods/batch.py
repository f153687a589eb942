"""The data types that the parts of a training step exchange, and the preparation of a batch."""

import math
from typing import Any, NamedTuple

import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, losses
from keras_mart.datasets.batches import PADDED_LENGTH
from keras_mart.typing import Tensor


class Outputs(NamedTuple):
    """Arguments of a training loss besides the labels.

    Attributes:
        natural: [batch, classes] float32 logits on x.
        adversarial: [batch, classes] float32 logits on x'; `None` if the method has no adversary.
        epsilon: size of the ball used, scalar or [batch].
        index: [batch] int32 numbers of the examples; `None` in validation and if the data have none.
        images, perturbed: [batch, ...] x and x', the latter `None` without an adversary.
        forward: maps [batch, ...] images to [batch, classes] float32 logits as x and x' were forwarded: in a training
            step in training mode, with the same random numbers and a gradient; in validation in evaluation mode.
        seed: seed of the batch's random numbers (`keras_mart.randomness`), the same that `perturb` was given.

    The last four are set only for `training_loss`, and `None` elsewhere.
    """

    natural: Tensor
    adversarial: Tensor | None
    epsilon: Tensor | float
    # `Any` below: `index` hides a method of tuples, and the others are never `None` where methods use them.
    index: Any = None
    images: Any = None
    perturbed: Any = None
    forward: Any = None
    seed: Any = None

    def per_example(self) -> "Outputs":
        """Returns a copy without the fields that are only for `training_loss`, which a compiled function can return."""
        return self._replace(images=None, perturbed=None, forward=None, seed=None)


class Pass(NamedTuple):
    """Results of attack, forward passes and gradients on one replica's part of a batch.

    Attributes:
        attack_result: (the images found, or `None` without an adversary, and the size of their ball).
        values: [batch] weighted losses.
        outputs: `Outputs`.
        terms: dictionary from names to scalars, the means of the loss and its parts.
        gradients: dictionary from the index of a trainable variable to the gradient of the mean loss, scaled by the
            optimizer's loss scaling.
        states: dictionary from an index to the new value of a variable that layers assign in their calls.
    """

    attack_result: tuple
    values: Tensor
    outputs: Outputs
    terms: dict
    gradients: dict
    states: dict


class Batch(NamedTuple):
    """One replica's part of a batch.

    Attributes:
        images: [batch, ...] float32, clipped to [0, 1].
        labels: [batch] int32, or [batch, classes] float32 soft labels.
        weights: [batch] float32.
        real: [batch] float32, 1 for examples and 0 for padding.
        index: [batch] int32, `None` if the data have none.
        ranges: [3, 2] float32, the smallest and the largest value of the images before clipping, of the labels and of
            the indices; for soft labels the values that `checks.ranges` describes.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    real: Tensor
    index: Any = None  # `Any`, since it hides a method of tuples
    ranges: Tensor | None = None


def from_data(data):
    """Returns this replica's `Batch` from the `data` argument of `train_step` and `test_step`."""
    data, real = (data[:-1], data[-1]) if isinstance(data, tuple) and len(data) == PADDED_LENGTH else (data, None)
    images, index, labels, weights = checks.unpacked(data)
    labels = ops.cast(labels, "float32") if checks.are_soft(labels) else losses.hard(labels)
    tensors = {"images": ops.cast(images, "float32"), "labels": labels}
    ones = tf.ones([ops.shape(labels)[0]])
    tensors["weights"] = ones if weights is None else ops.reshape(ops.cast(weights, "float32"), (-1,))
    tensors["real"] = ones if real is None else real
    if index is not None:
        tensors["index"] = ops.cast(index, "int32")
    batch = Batch(**distribution.fill_if_empty(tensors))
    of_images = tf.where(tf.reduce_any(tf.math.is_nan(batch.images)), math.nan, _range(batch.images))
    of_index = tf.zeros([2]) if index is None else _range(batch.index)
    ranges = [of_images, _label_range(batch.labels, batch.real), of_index]
    ranges = tf.stack([tf.cast(each, "float32") for each in ranges])
    return batch._replace(images=ops.clip(batch.images, 0.0, 1.0), ranges=ranges)


def _range(values):
    return tf.stack([tf.reduce_min(values), tf.reduce_max(values)])


def _label_range(labels, real):
    if not checks.are_soft(labels):
        return _range(labels)
    sums = [tf.where(real > 0, tf.reduce_sum(each, -1), 1.0) for each in (labels, tf.abs(labels))]
    sums = [tf.where(tf.math.is_nan(each), math.inf, each) for each in sums]
    return tf.stack([tf.reduce_min(sums[0]), tf.reduce_max(sums[1])])


def mean(values, real):
    """Returns the mean of [batch] values over a replica's real examples, 0 if it has none."""
    return tf.reduce_sum(tf.where(real > 0, values, 0.0)) / tf.maximum(tf.reduce_sum(real), 1.0)
