"""The evaluation loop: runs a round of an attack, batch by batch, on the examples that are still to be attacked."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, losses, randomness
from keras_mart.attacks.inference import traced, uses_xla

# The predicted class if a logit is NaN; it differs from every label.
NO_CLASS = -1


class Examples(NamedTuple):
    """The examples of an evaluation.

    images: [examples, ...].
    labels: [examples] int32.
    seeds: [examples, 2] int32, as `randomness.example_seeds` returns them.
    """

    images: np.ndarray
    labels: np.ndarray
    seeds: np.ndarray


class Predictions(NamedTuple):
    """The predictions of a network: [batch] classes, [batch] logit margins."""

    predicted: np.ndarray
    margins: np.ndarray


class Found(NamedTuple):
    """The result of a round for a batch.

    rows: [batch] positions of the examples.
    images: [batch, ...] the natural images.
    found: [batch, ...] the images that the attack found.
    predictions: those for the images found.
    """

    rows: np.ndarray
    images: Any
    found: Any
    predictions: Predictions


@dataclasses.dataclass
class AttackState:
    """The progress of an attack on all examples.

    Attributes:
        labels: [examples] integers.
        predicted: [examples] integers, the current predictions.
        left: [examples] booleans, whether an example is still to be attacked.
        candidates: [examples, ...] the images that the last round returned, for attacks that start from them.
    """

    labels: np.ndarray
    predicted: np.ndarray
    left: np.ndarray
    candidates: np.ndarray | None = None

    def update(self, rows, predicted, candidates=None):
        """Records the result of a round for some examples, and removes those that it fooled."""
        self.predicted[rows] = predicted
        self.left[rows] = predicted == self.labels[rows]
        if candidates is not None:
            self.candidates[rows] = candidates


class CallableAttack:
    """Adapts a callable of (network, images, labels, seed=[2] integers) to the interface of an attack."""

    skips_misclassified = reuses_candidates = minimises = False

    def __init__(self, function):
        self.function = function
        self.gradients = getattr(function, "gradients", None)
        self.stages = {"": self}

    def rounds(self, classes):
        return 1

    def in_round(self, network, images, labels, seeds, number=0, candidates=None):
        seed = randomness.fold_in(randomness.shared_seed(seeds), seeds[0, 1])  # a different one for each batch
        return self.function(network, images, labels, seed=seed)


def run_round(network, attack, examples, which, size, number=0, candidates=None):
    """Runs one round of an attack on some examples, batch by batch.

    Traces accept any batch size, so fewer examples need no new trace. XLA compiles anew for every size: where it is
    used, the last batch is padded with repeated examples.

    Args:
        network: a Keras classifier that returns logits.
        attack: an `Attack` or a `CallableAttack`.
        examples: `Examples`.
        which: positions of the examples to attack.
        size: number of examples in a batch.
        number: number of the round.
        candidates: [examples, ...] the images that the previous round returned, for attacks that start from them.

    Yields:
        `Found` of each batch.
    """
    for rows, count in batches(network, which, size):
        images, labels = as_float32(examples.images[rows]), tf.constant(examples.labels[rows])
        seeds = tf.constant(examples.seeds[rows])
        previous = images if candidates is None or number == 0 else tf.constant(candidates[rows])
        found = attack.in_round(network, images, labels, seeds, number, previous)
        predictions = predict(network, found, labels)
        predictions = Predictions(*(each[:count] for each in predictions))
        yield Found(rows[:count], images[:count], found[:count], predictions)


def stages(attack, seeds):
    """Returns [(name, attack, [batch, 2] seeds)] of the stages of an attack; several stages get different seeds."""
    parts = attack.stages
    if len(parts) == 1:
        return [(name, part, seeds) for name, part in parts.items()]
    return [(name, part, np.asarray(randomness.fold_in(seeds, n))) for n, (name, part) in enumerate(parts.items())]


def attack_survivors(network, attack, images, labels, seeds):
    """Runs an attack on one batch; each round only on the examples that are still classified correctly.

    Returns:
        [batch, ...] float32 images, for each example the one of largest logit margin that was found.

    Raises:
        ValueError: symbolic images.
    """
    if tf.is_symbolic_tensor(images):
        raise ValueError(f"An attack in rounds runs eagerly, not inside a tf.function. Received: {attack}")
    natural, classes = predict(network, images, labels), checks.classes(network, images)
    images, labels = np.asarray(images), np.asarray(labels)
    best = images.copy()
    state = AttackState(labels, natural.predicted.copy(), natural.predicted == labels)
    margins = np.where(state.left, -np.inf, natural.margins)  # every image found is preferred to the natural image
    for _, stage, stage_seeds in stages(attack, seeds):
        examples = Examples(images, labels, np.asarray(stage_seeds))
        state.candidates = images.copy() if stage.reuses_candidates else None
        for number in range(stage.rounds(classes)):
            which = np.flatnonzero(state.left)
            for rows, _, found, predictions in run_round(
                network, stage, examples, which, len(labels), number, state.candidates
            ):
                fooled = predictions.predicted != labels[rows]  # at a margin of 0 another class may be predicted
                better = fooled | (predictions.margins > margins[rows])
                best[rows[better]], margins[rows[better]] = np.asarray(found)[better], predictions.margins[better]
                state.update(rows, predictions.predicted, found if stage.reuses_candidates else None)
    return tf.constant(best)


def batches(network, which, size):
    """Yields ([batch] positions of examples, how many of them are not padding).

    The batches have about equal sizes, since a tiny last one would take as long. Where XLA compiles, all are full.
    """
    if uses_xla(network):
        for start in range(0, len(which), size):
            rows = which[start : start + size]
            yield np.resize(rows, size), len(rows)
        return
    ends = np.linspace(0, len(which), -(-len(which) // size) + 1).astype(int)
    for start, end in itertools.pairwise(ends):
        yield which[start:end], end - start


def as_float32(images):
    """Returns [batch, ...] images as a float32 tensor, clipped to [0, 1]."""
    return tf.clip_by_value(tf.cast(images, "float32"), 0.0, 1.0)


def predict(network, images, labels):
    """Returns the `Predictions` for [batch, ...] float32 images and [batch] int32 labels."""
    signature = [tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32")]
    predicted, margins = traced(network, "predict", _predictions, signature, exact=True)(images, labels)
    return Predictions(predicted.numpy(), margins.numpy())


def _predictions(logits, images, labels):
    outputs = logits(images)
    unknown = ops.any(ops.isnan(outputs), axis=-1)
    predicted = ops.cast(ops.argmax(outputs, axis=-1), "int32")
    return ops.where(unknown, NO_CLASS, predicted), losses.margin(labels, outputs)
