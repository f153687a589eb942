"""The loop of all evaluation: a round of an attack, batch by batch, on the examples that are left to it."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, losses, randomness
from keras_mart.attacks.inference import traced, uses_xla

# The class predicted by logits that are NaN: no label equals it.
NO_CLASS = -1


class Examples(NamedTuple):
    """Arrays: [examples, ...] images, [examples] int32 labels, [examples, 2] int32 seeds (`randomness.example_seeds`)."""

    images: np.ndarray
    labels: np.ndarray
    seeds: np.ndarray


class Predictions(NamedTuple):
    """What a network says to images: [batch] predicted classes, [batch] logit margins."""

    predicted: np.ndarray
    margins: np.ndarray


class Found(NamedTuple):
    """What a round found for a batch: the examples' places, their images, the images found, and their judgement."""

    rows: np.ndarray
    images: object
    found: object
    judged: Predictions


@dataclasses.dataclass
class AttackState:
    """How examples stand under an attack.

    Attributes:
        labels: [examples] integers.
        predicted: [examples] integers, what each is taken for now.
        left: [examples] booleans, which of them are to be attacked.
        candidates: [examples, ...] what the last round returned, for attacks that go on from there.
    """

    labels: np.ndarray
    predicted: np.ndarray
    left: np.ndarray
    candidates: np.ndarray | None = None

    def take(self, rows, predicted, candidates=None):
        """Takes in what a round has made of some examples, and lets go of those that it fooled."""
        self.predicted[rows] = predicted
        self.left[rows] = predicted == self.labels[rows]
        if candidates is not None:
            self.candidates[rows] = candidates


class CallableAttack:
    """A callable of (network, images, labels, seed=[2] integers) as the loop takes attacks."""

    skips_misclassified = reuses_candidates = minimises = False

    def __init__(self, function):
        self.function = function
        self.gradients = getattr(function, "gradients", None)
        self.stages = {"": self}

    def rounds(self, classes):
        return 1

    def in_round(self, network, images, labels, seeds, number=0, candidates=None):
        seed = randomness.fold_in(randomness.shared_seed(seeds), seeds[0, 1])  # another one for each batch
        return self.function(network, images, labels, seed=seed)


def run_round(network, attack, examples, which, size, number=0, candidates=None):
    """Yields what an attack finds for some examples, batch by batch.

    Nothing is traced again as the examples become fewer: the batch size of a trace is open. Where XLA compiles, which
    it does anew for every size, the last batch is filled up with examples that are there already.

    Args:
        network: a Keras classifier that returns logits.
        attack: an `Attack` or a `CallableAttack`, in one of its rounds.
        examples: `Examples`.
        which: places of the examples to attack.
        size: number of examples in a batch.
        number: of the round.
        candidates: [examples, ...] what the round before returned, for attacks that go on from there.

    Yields:
        `Found` of each batch.
    """
    for rows, count in batches(network, which, size):
        images, labels = as_float32(examples.images[rows]), tf.constant(examples.labels[rows])
        seeds = tf.constant(examples.seeds[rows])
        before = images if candidates is None or number == 0 else tf.constant(candidates[rows])
        found = attack.in_round(network, images, labels, seeds, number, before)
        judged = predict(network, found, labels)
        judged = Predictions(*(each[:count] for each in judged))
        yield Found(rows[:count], images[:count], found[:count], judged)


def stages(attack, seeds):
    """[(name, attack, [batch, 2] seeds)] of what an attack is made of."""
    parts = attack.stages
    if len(parts) == 1:
        return [(name, part, seeds) for name, part in parts.items()]
    return [(name, part, np.asarray(randomness.fold_in(seeds, n))) for n, (name, part) in enumerate(parts.items())]


def attack_survivors(network, attack, images, labels, seeds):
    """Runs an attack on one batch, but only on what is classified correctly and as long as it is.

    Returns:
        [batch, ...] float32 tensor: of what was found for an example, the image with the largest logit margin.

    Raises:
        ValueError: symbolic images.
    """
    if tf.is_symbolic_tensor(images):
        raise ValueError(f"An attack in rounds runs eagerly, not inside a tf.function. Received: {attack}")
    natural, classes = predict(network, images, labels), checks.classes(network, images)
    images, labels = np.asarray(images), np.asarray(labels)
    best = images.copy()
    state = AttackState(labels, natural.predicted.copy(), natural.predicted == labels)
    margins = np.where(state.left, -np.inf, natural.margins)  # whatever is found counts more than the natural image
    for _, stage, stage_seeds in stages(attack, seeds):
        examples = Examples(images, labels, np.asarray(stage_seeds))
        state.candidates = images.copy() if stage.reuses_candidates else None
        for number in range(stage.rounds(classes)):
            which = np.flatnonzero(state.left)
            for rows, _, found, judged in run_round(
                network, stage, examples, which, len(labels), number, state.candidates
            ):
                fooled = judged.predicted != labels[rows]  # also at a margin of 0, where another class may be predicted
                better = fooled | (judged.margins > margins[rows])
                best[rows[better]], margins[rows[better]] = np.asarray(found)[better], judged.margins[better]
                state.take(rows, judged.predicted, found if stage.reuses_candidates else None)
    return tf.constant(best)


def batches(network, which, size):
    """Yields ([batch] places of examples, how many of them are not filling).

    The batches are of equal size, about: a tiny last one would cost as much time. Where XLA compiles, all are full.
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
    """Returns [batch, ...] images as a float32 tensor, in [0, 1] to the last bit."""
    return tf.clip_by_value(tf.cast(images, "float32"), 0.0, 1.0)


def predict(network, images, labels):
    """Returns the `Predictions` of images: float32 [batch, ...], and int32 [batch] labels."""
    signature = [tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32")]
    predicted, margins = traced(network, "predict", _predictions, signature, exact=True)(images, labels)
    return Predictions(predicted.numpy(), margins.numpy())


def _predictions(logits, images, labels):
    outputs = logits(images)
    unknown = ops.any(ops.isnan(outputs), axis=-1)
    predicted = ops.cast(ops.argmax(outputs, axis=-1), "int32")
    return ops.where(unknown, NO_CLASS, predicted), losses.margin(labels, outputs)
