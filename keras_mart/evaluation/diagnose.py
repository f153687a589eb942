"""Checks for false robustness: signs that an attack failed rather than that the network holds."""

import dataclasses
import json
import math

import numpy as np
import tensorflow as tf

from keras_mart.attacks import PGD, Attack, Noise, Square, Transfer
from keras_mart.attacks.gradients import gradient_of, values_only
from keras_mart.attacks.inference import network_of, traced
from keras_mart.evaluation import examples, signs
from keras_mart.evaluation.accuracy import evaluate
from keras_mart.evaluation.precision import with_precision
from keras_mart.losses import cross_entropy
from keras_mart.threats import L2, Threat

# The accuracy is measured at these multiples of epsilon, and at last in a ball that holds all images.
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What the checks say of one classifier in one ball.

    Attributes:
        threat: the ball.
        examples: number of examples looked at.
        checks: tuple of `Check`.
        curve: "epsilon" and "accuracy", two lists, and the "attack" that measured them.
    """

    threat: object
    examples: int
    checks: tuple
    curve: dict

    @property
    def passed(self):
        """Whether nothing was flagged."""
        return not self.flagged

    @property
    def flagged(self):
        """The names of the checks that were flagged."""
        return [check.name for check in self.checks if check.verdict == signs.FLAGGED]

    def __getitem__(self, name):
        """The check of that name."""
        return {check.name: check for check in self.checks}[name]

    def __str__(self):
        width = max(len(check.name) for check in self.checks)
        lines = [f"{self.threat!r}, {self.examples:,} examples"]
        for check in self.checks:
            lines += [f"{check.verdict:<7}  {check.name:<{width}}  {check.figure}"]
            if check.verdict == signs.FLAGGED:
                lines += [f"{'':<9}{check.meaning}"]
        return "\n".join(lines)

    def to_json(self):
        """The diagnosis as a JSON object, indented."""
        threat = {"norm": type(self.threat).__name__, "epsilon": self.threat.epsilon}
        return json.dumps({**dataclasses.asdict(self), "threat": threat}, indent=2)


def diagnose(model, data, threat, source=None, *, batch_size=128, limit=200, seed=0, verbose=1, precision="float32"):
    """Looks for signs that attacks on a classifier fail for other reasons than that it holds.

    Runs PGD at growing epsilon, with more steps and with restarts, random noise, Square and, given a source, a
    transfer attack, and looks at outputs and gradients themselves. A flag is a reason to look closer; that nothing is
    flagged is no proof of robustness.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        data: as in `keras_mart.evaluate`.
        threat: the ball that the robustness is claimed for, of positive epsilon.
        source: another classifier of the same task, trained independently, for the transfer check.
        limit: number of examples, the first ones.
        batch_size, seed, verbose, precision: as in `keras_mart.evaluate`.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: an epsilon of 0, and where `keras_mart.evaluate` raises it.

    Reference: Athalye et al., arXiv 1802.00420, section 3; Carlini et al., arXiv 1902.06705.
    """
    if not isinstance(threat, Threat) or not threat.epsilon > 0:
        raise ValueError(f"`threat` must be a ball of positive epsilon, such as Linf(8 / 255). Received: {threat!r}")
    network = with_precision(network_of(model), precision)
    images, labels = examples.read(network, data, limit)
    ladder = _ladder(threat, images.shape[1:])
    attacks = _attacks(threat, ladder, source, are_images=len(images.shape) == 4)
    table = evaluate(
        network, (images, labels), attacks, batch_size=batch_size, seed=seed, verbose=verbose, precision=None
    )
    once = f"at {threat.epsilon:g}"
    accuracies = [table["natural"], *(table[f"at {each:g}"] for each in ladder[1:])]
    outputs, gradients = _probe(network, images, labels, batch_size)
    found = (
        signs.deterministic(outputs, _probe(network, images, labels, batch_size)[0]),
        signs.looks_like_logits(outputs),
        signs.gradients(gradients),
        signs.epsilon(ladder, accuracies),
        signs.steps(table, once),
        signs.restarts(table),
        signs.noise(table, once),
        signs.black_box(table, once, "square", f"Square with {signs.SQUARE_QUERIES:,} queries"),
        signs.black_box(table, once, "transfer", "PGD on the source model"),
    )
    curve = {"epsilon": ladder, "accuracy": accuracies, "examples": table.examples, "attack": f"PGD-{signs.STEPS}"}
    return Diagnosis(threat, table.examples, found, curve)


def _attacks(threat, ladder, source, are_images):
    attacks = {f"at {each:g}": _Rung(threat, PGD(threat, signs.STEPS), each) for each in ladder[1:]}
    attacks |= {
        "few": PGD(threat, signs.FEW_STEPS),
        "many": PGD(threat, signs.MANY_STEPS),
        "restarts": PGD(threat, signs.STEPS, restarts=signs.RESTARTS),
        "noise": Noise(threat, signs.NOISE_SAMPLES),
    }
    if are_images:
        attacks["square"] = Square(threat, signs.SQUARE_QUERIES)
    if source is not None:
        attacks["transfer"] = Transfer(source, PGD(threat, signs.STEPS))
    return attacks


@dataclasses.dataclass(frozen=True)
class _Rung(Attack):
    """An attack at another epsilon, its step size scaled alike: traced once for all of them."""

    attack: PGD
    epsilon: float

    @property
    def gradients(self):
        return self.attack.gradients

    def in_round(self, network, images, labels, seeds, number=0, candidates=None):
        attack = self._traced(network, images, tf.TensorSpec([]), key=("rung", self.attack))
        return attack(images, labels, seeds, self.epsilon)

    def perturb(self, logits, images, labels, seed, epsilon):
        def objective(candidates):
            return self.attack.loss(labels, logits(candidates))

        return self.attack.maximise(objective, images, epsilon, seed)


def _ladder(threat, shape):
    """Growing epsilons: 0, multiples of the threat's, and one that leaves no image out of reach."""
    everything = math.sqrt(math.prod(shape)) if isinstance(threat, L2) else 1.0
    below = {threat.epsilon * multiple for multiple in MULTIPLES}
    return sorted({0.0, threat.epsilon, *(each for each in below if each < everything), everything})


def _probe(network, images, labels, batch_size):
    """([examples, classes] logits, [examples, ...] gradients of the cross-entropy as attacks see them)."""
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
