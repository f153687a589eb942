"""What a step hands on: one replica's part of a batch, what the network made of it, and what came of that."""

import math
from typing import NamedTuple

import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, losses
from keras_mart.datasets.batches import PADDED_LENGTH


class Outputs(NamedTuple):
    """What a training loss sees.

    natural: [batch, classes] float32 logits on x.
    adversarial: [batch, classes] float32 logits on x'; `None` where the method has no adversary.
    epsilon: the size of the ball used, scalar or [batch].
    index: [batch] int32 numbers of the examples; `None` in validation and where the data have none.
    images, perturbed: [batch, ...] x and x', the latter `None` without an adversary.
    forward: maps [batch, ...] images to [batch, classes] float32 logits, as x and x' were forwarded: in a training step
        in training mode, with the same random numbers and a gradient; in validation in evaluation mode.
    seed: of the batch's random numbers (`keras_mart.randomness`), that `perturb` was given too.

    The last four are there for `training_loss` only.
    """

    natural: object
    adversarial: object
    epsilon: object
    index: object = None
    images: object = None
    perturbed: object = None
    forward: object = None
    seed: object = None

    def of_examples(self):
        """Returns them without what is there for `training_loss` only: a function of tensors can return the rest."""
        return self._replace(images=None, perturbed=None, forward=None, seed=None)


class Pass(NamedTuple):
    """What attack, forwards and gradients over one replica's part of a batch came to.

    attacked: the images found, `None` without an adversary, and the size of their ball.
    values: [batch] weighted losses.
    terms: name to scalar, the means of the loss and its parts.
    gradients: number of a trainable variable to its gradient, of the mean loss, as the optimizer scales it.
    states: number to new value, of the variables that layers assign in their calls.
    """

    attacked: tuple
    values: object
    outputs: Outputs
    terms: dict
    gradients: dict
    states: dict


class Batch(NamedTuple):
    """One replica's part of a batch.

    images: [batch, ...] float32, clipped to [0, 1].
    labels: [batch] int32, or [batch, classes] float32 where they are soft.
    index: [batch] int32, `None` where the data have none.
    weights: [batch] float32.
    real: [batch] float32, 1 for examples and 0 for filling.
    ranges: [3, 2] float32, the lowest and the highest of the images as they came, of labels and indices; of soft labels
        what `checks.ranges` says.
    """

    images: object
    labels: object
    weights: object
    real: object
    index: object = None
    ranges: object = None


def of(data):
    """Returns this replica's `Batch` of what `fit` and `evaluate` hand on."""
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
    of_images = tf.stack([tf.reduce_min(batch.images), tf.reduce_max(batch.images)])
    found = [of_images, _label_range(batch.labels, batch.real)]
    found.append(tf.zeros([2]) if index is None else tf.stack([tf.reduce_min(batch.index), tf.reduce_max(batch.index)]))
    found[0] = tf.where(tf.reduce_any(tf.math.is_nan(batch.images)), math.nan, found[0])
    ranges = tf.stack([tf.cast(each, "float32") for each in found])
    return batch._replace(images=ops.clip(batch.images, 0.0, 1.0), ranges=ranges)


def _label_range(labels, real):
    if not checks.are_soft(labels):
        return tf.stack([tf.reduce_min(labels), tf.reduce_max(labels)])
    sums = [tf.where(real > 0, tf.reduce_sum(each, -1), 1.0) for each in (labels, tf.abs(labels))]
    sums = [tf.where(tf.math.is_nan(each), math.inf, each) for each in sums]
    return tf.stack([tf.reduce_min(sums[0]), tf.reduce_max(sums[1])])


def mean(values, real):
    """Returns the mean of [batch] values over a replica's examples, 0 where it has none."""
    return tf.reduce_sum(tf.where(real > 0, values, 0.0)) / tf.maximum(tf.reduce_sum(real), 1.0)
