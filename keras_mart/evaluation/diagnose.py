"""Checks for false robustness: signs that an attack failed although the network is not robust."""

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mart.attacks import PGD, Attack, Noise, Square, Transfer
from keras_mart.attacks.gradients import gradient_of, values_only
from keras_mart.attacks.inference import network_of, traced
from keras_mart.evaluation import examples, false_robustness
from keras_mart.evaluation.accuracy import evaluate
from keras_mart.evaluation.precision import with_precision
from keras_mart.losses import cross_entropy
from keras_mart.threats import L2, Threat
from keras_mart.typing import Data

# The accuracy is measured at these multiples of epsilon, and in a ball that contains every image.
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The results of the checks for one classifier and one ball.

    Attributes:
        threat: the ball.
        examples: number of examples that were checked.
        checks: tuple of `Check`.
        curve: accuracy against epsilon: the lists "epsilon" and "accuracy", the number of "examples", and the "attack"
            that measured them.
    """

    threat: Threat
    examples: int
    checks: tuple[false_robustness.Check, ...]
    curve: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether no check was flagged."""
        return not self.flagged

    @property
    def flagged(self) -> list[str]:
        """The names of the flagged checks."""
        return [check.name for check in self.checks if check.verdict == false_robustness.FLAGGED]

    def __getitem__(self, name: str) -> false_robustness.Check:
        """Returns the check with this name."""
        return {check.name: check for check in self.checks}[name]

    def __str__(self):
        width = max(len(check.name) for check in self.checks)
        lines = [f"{self.threat!r}, {self.examples:,} examples"]
        for check in self.checks:
            lines += [f"{check.verdict:<7}  {check.name:<{width}}  {check.figure}"]
            if check.verdict == false_robustness.FLAGGED:
                lines += [f"{'':<9}{check.meaning}"]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Returns the diagnosis as an indented JSON object."""
        threat = {"norm": type(self.threat).__name__, "epsilon": self.threat.epsilon}
        return json.dumps({**dataclasses.asdict(self), "threat": threat}, indent=2)


def diagnose(
    model: keras.Model,
    data: Data | Iterable,
    threat: Threat,
    source: keras.Model | None = None,
    *,
    batch_size: int = 128,
    limit: int | None = 200,
    seed: int = 0,
    verbose: int = 1,
    precision: str | None = "float32",
) -> Diagnosis:
    """Checks a classifier for false robustness: attacks that fail although the classifier is not robust.

    Runs PGD at increasing epsilon, with more steps and with restarts, random noise, Square and, if a source is given, a
    transfer attack; and examines the classifier's outputs and gradients. A flagged check is a reason to investigate;
    passing all checks does not prove robustness.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        data: as in `keras_mart.evaluate`.
        threat: the ball for which robustness is claimed, of positive epsilon.
        source: an independently trained classifier for the same task, for the transfer check.
        limit: number of examples to check, from the start of the data.
        batch_size, seed, verbose, precision: as in `keras_mart.evaluate`.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: if epsilon is 0; or as in `keras_mart.evaluate`.

    Reference: Athalye et al., arXiv 1802.00420, section 3; Carlini et al., arXiv 1902.06705.
    """
    if not isinstance(threat, Threat) or not threat.epsilon > 0:
        raise ValueError(f"`threat` must be a ball of positive epsilon, such as Linf(8 / 255). Received: {threat!r}")
    network = with_precision(network_of(model), precision)
    images, labels = examples.read(network, data, limit)
    epsilons = _epsilons(threat, images.shape[1:])
    attacks = _attacks(threat, epsilons, source, are_images=len(images.shape) == 4)
    table = evaluate(
        network, (images, labels), attacks, batch_size=batch_size, seed=seed, verbose=verbose, precision=None
    )
    pgd = f"at {threat.epsilon:g}"
    accuracies = [table["natural"], *(table[f"at {each:g}"] for each in epsilons[1:])]
    outputs, gradients = _probe(network, images, labels, batch_size)
    found = (
        false_robustness.deterministic(outputs, _probe(network, images, labels, batch_size)[0]),
        false_robustness.looks_like_logits(outputs),
        false_robustness.gradients(gradients),
        false_robustness.epsilon(epsilons, accuracies),
        false_robustness.steps(table, pgd),
        false_robustness.restarts(table),
        false_robustness.noise(table, pgd),
        false_robustness.black_box(table, pgd, "square", f"Square with {false_robustness.SQUARE_QUERIES:,} queries"),
        false_robustness.black_box(table, pgd, "transfer", "PGD on the source model"),
    )
    curve = {
        "epsilon": epsilons,
        "accuracy": accuracies,
        "examples": table.examples,
        "attack": f"PGD-{false_robustness.STEPS}",
    }
    return Diagnosis(threat, table.examples, found, curve)


def _attacks(threat, epsilons, source, are_images):
    attacks = {f"at {each:g}": _AtEpsilon(threat, PGD(threat, false_robustness.STEPS), each) for each in epsilons[1:]}
    attacks |= {
        "few": PGD(threat, false_robustness.FEW_STEPS),
        "many": PGD(threat, false_robustness.MANY_STEPS),
        "restarts": PGD(threat, false_robustness.STEPS, restarts=false_robustness.RESTARTS),
        "noise": Noise(threat, false_robustness.NOISE_SAMPLES),
    }
    if are_images:
        attacks["square"] = Square(threat, false_robustness.SQUARE_QUERIES)
    if source is not None:
        attacks["transfer"] = Transfer(source, PGD(threat, false_robustness.STEPS))
    return attacks


@dataclasses.dataclass(frozen=True)
class _AtEpsilon(Attack):
    """An attack at another epsilon, with its step size scaled to it; traced once for all epsilons."""

    attack: PGD
    epsilon: float

    @property
    def gradients(self):
        return self.attack.gradients

    def in_round(self, network, images, labels, seeds, number=0, candidates=None):
        attack = self._traced(network, images, tf.TensorSpec([]), key=("at_epsilon", self.attack))
        return attack(images, labels, seeds, self.epsilon)

    def perturb(self, logits, images, labels, seed, epsilon):
        def objective(candidates):
            return self.attack.loss(labels, logits(candidates))

        return self.attack.maximise(objective, images, epsilon, seed)


def _epsilons(threat, shape):
    """Returns increasing epsilons: 0, multiples of the threat's, and one whose ball contains every image."""
    everything = math.sqrt(math.prod(shape)) if isinstance(threat, L2) else 1.0
    below = {threat.epsilon * multiple for multiple in MULTIPLES}
    return sorted({0.0, threat.epsilon, *(each for each in below if each < everything), everything})


def _probe(network, images, labels, batch_size):
    """Returns [examples, classes] logits and [examples, ...] gradients of the cross-entropy, as attacks see them."""
    signature = [tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32")]
    function = traced(network, "probe", _logits_and_gradients, signature, exact=True)
    parts = [
        function(images[start : start + batch_size].astype("float32"), labels[start : start + batch_size])
        for start in range(0, len(images), batch_size)
    ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _logits_and_gradients(logits, images, labels):
    def objective(candidates):
        return cross_entropy(labels, logits(candidates))

    return logits(images), gradient_of(values_only(objective), images)[0]
