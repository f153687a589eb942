"""Attacks one after the other, each on the examples that are still classified correctly."""

import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import losses
from keras_mart.attacks.inference import traced, uses_xla


class Result(NamedTuple):
    """What the attacks came to.

    images: [batch, ...] the adversarial image of each example, of those found the one with the largest margin.
    predictions: attack's name to [batch] predicted classes after it.
    seconds: attack's name to the time it took.
    gradients: attack's name to the number of gradients computed, each of one example; `None` where it does not say.
    """

    images: object
    predictions: dict
    seconds: dict
    gradients: dict


# The class predicted by logits that are NaN: no label equals it.
NOTHING = -1


class Judgement(NamedTuple):
    """What a network says to images: [batch] predicted classes, [batch] logit margins, the number of classes."""

    predicted: np.ndarray
    margins: np.ndarray
    classes: int


class Progress(NamedTuple):
    """What is about to be done: a round of an attack on `left` examples; `round` counts from 0."""

    attack: str
    round: int
    rounds: int
    left: int


def attack_survivors(network, attacks, images, labels, seed, left=None, natural=None, on_round=None):
    """Runs attacks in turn; an example that is misclassified once is left alone by the rest.

    Nothing is traced again as the examples become fewer: the batch size of a trace is open. Where XLA compiles, which
    it does anew for every size, they are filled up to a power of two.

    Args:
        network: a Keras classifier that returns logits.
        attacks: name to attack.
        images: [batch, ...] float32 images.
        labels: [batch] int32.
        seed: [2] integers.
        left: [batch] NumPy booleans, the examples to attack; those classified correctly by default.
        natural: the `Judgement` of the images, where it is known already.
        on_round: called with a `Progress` before each round.

    Returns:
        A `Result`.

    Raises:
        ValueError: symbolic images.
    """
    if tf.is_symbolic_tensor(images):
        raise ValueError(f"An attack in rounds runs eagerly, not inside a tf.function. Received: {attacks}")
    natural = natural or judge(network, images, labels)
    survivors = _Survivors(network, images, labels, natural, left)
    predictions, seconds, gradients = {}, {}, {}
    for number, (name, attack) in enumerate(attacks.items()):
        start, candidates, attacked = time.perf_counter(), images, 0
        rounds = attack.rounds(natural.classes) if hasattr(attack, "rounds") else 1
        for each in range(rounds):
            which = np.flatnonzero(survivors.left)
            if on_round is not None:
                on_round(Progress(name, each, rounds, len(which)))
            if not len(which):
                break
            round_seed = tf.random.fold_in(tf.random.fold_in(seed, number), each)
            found = _one_round(attack, network, (images, labels, candidates), which, round_seed, each)
            candidates = _replace(candidates, which, found)
            survivors.confront(which, found)
            attacked += len(which)
        predictions[name] = survivors.predicted.copy()
        seconds[name] = time.perf_counter() - start
        cost = getattr(attack, "gradients", None)
        gradients[name] = None if cost is None else cost * attacked
    return Result(survivors.adversarial, predictions, seconds, gradients)


class _Survivors:
    """Who is `left`, and of what was found for each example the image with the largest margin."""

    def __init__(self, network, images, labels, natural, left):
        self.network, self.labels = network, labels
        self.adversarial, self.predicted = images, natural.predicted.copy()
        self.left = self.predicted == np.asarray(labels) if left is None else left.copy()
        # Whatever an attack finds counts more than the natural image.
        self.margins = np.where(self.left, -np.inf, natural.margins)

    def confront(self, which, found):
        """Takes in what was found for the examples at `which`, and lets go of those that it fools."""
        labels = tf.gather(self.labels, which)
        rows = _filled(self.network, np.arange(len(which)), len(self.left))
        filled = (each if len(rows) == len(which) else tf.gather(each, rows) for each in (found, labels))
        judged = judge(self.network, *filled)
        now = Judgement(judged.predicted[: len(which)], judged.margins[: len(which)], judged.classes)
        fooled = now.predicted != labels.numpy()  # also at a margin of 0, where another class may be predicted
        better = fooled | (now.margins > self.margins[which])
        self.adversarial = _replace(self.adversarial, which[better], tf.boolean_mask(found, better))
        self.margins[which[better]] = now.margins[better]
        self.predicted[which[better]] = now.predicted[better]
        self.left[which] = self.predicted[which] == labels.numpy()


def _one_round(attack, network, state, which, seed, number):
    """[len(which), ...] what a round of the attack finds for some of the examples."""
    filled = _filled(network, which, len(state[0]))
    images, labels, candidates = (each if len(which) == len(each) else tf.gather(each, filled) for each in state)
    if hasattr(attack, "round_on_network"):
        found = attack.round_on_network(network, images, labels, seed, number, candidates)
    else:
        found = attack(network, images, labels, seed=seed)
    return found[: len(which)]


def _filled(network, which, most):
    """The numbers of examples; where XLA compiles, repeated up to a power of two of them, or to the most there are."""
    if not uses_xla(network):
        return which
    return np.resize(which, min(1 << (len(which) - 1).bit_length(), most))


def _replace(images, which, others):
    return others if len(which) == len(images) else tf.tensor_scatter_nd_update(images, which[:, None], others)


def judge(network, images, labels):
    """The `Judgement` of images: float32 [batch, ...], and int32 [batch] labels."""
    signature = [tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32")]
    judgement = traced(network, "judge", _judgement, signature, as_it_is=True)
    predicted, margins, classes = judgement(images, labels)
    return Judgement(predicted.numpy(), margins.numpy(), int(classes))


def _judgement(logits, images, labels):
    outputs = logits(images)
    unknown = ops.any(ops.isnan(outputs), axis=-1)
    return ops.where(unknown, NOTHING, ops.argmax(outputs, axis=-1)), losses.margin(labels, outputs), outputs.shape[-1]
