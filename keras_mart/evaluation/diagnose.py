"""Checks for false robustness: signs that an attack failed rather than that the network holds."""

import dataclasses
import json
import math

import numpy as np
import tensorflow as tf

from keras_mart.attacks import PGD, Noise, Square, Transfer
from keras_mart.attacks.gradients import gradient_of
from keras_mart.attacks.inference import network_of, traced
from keras_mart.evaluation.accuracy import evaluate, taken
from keras_mart.losses import cross_entropy
from keras_mart.threats import L2

PASSED, FLAGGED, SKIPPED = "passed", "flagged", "skipped"
# The accuracy is measured at these multiples of epsilon, and at last in a ball that holds all images.
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
FEW_STEPS, STEPS, MANY_STEPS, RESTARTS = 10, 20, 100, 5
NOISE_SAMPLES, SQUARE_QUERIES = 10, 1000
# Differences of accuracy up to this are chance.
TOLERANCE = 0.05
# At most this share of the examples may have a gradient of exactly 0. Single entries may: ReLU networks trained on
# black borders, or adversarially, have no gradient at half of the pixels and more.
ZERO_EXAMPLES = 0.05
# Noise must break at most this share of what PGD breaks.
NOISE_SHARE = 0.5
# Outputs of the same images may differ by this share of their norm (as in the official AutoAttack).
REPEATABLE = 1e-4
# A gap between the two largest logits above which the gradient of a cross-entropy is 0 in float32.
SATURATED = 80.0


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: its name, "passed", "flagged" or "skipped", what was measured, and what that means."""

    name: str
    verdict: str
    figure: str
    meaning: str


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
        return [check.name for check in self.checks if check.verdict == FLAGGED]

    def __getitem__(self, name):
        """The check of that name."""
        return {check.name: check for check in self.checks}[name]

    def __str__(self):
        width = max(len(check.name) for check in self.checks)
        lines = [f"{self.threat!r}, {self.examples:,} examples"]
        for check in self.checks:
            lines += [f"{check.verdict:<7}  {check.name:<{width}}  {check.figure}"]
            if check.verdict == FLAGGED:
                lines += [f"{'':<9}{check.meaning}"]
        return "\n".join(lines)

    def to_json(self):
        """The diagnosis as a JSON object, indented."""
        threat = {"norm": type(self.threat).__name__, "epsilon": self.threat.epsilon}
        return json.dumps({**dataclasses.asdict(self), "threat": threat}, indent=2)


def diagnose(model, data, threat, source=None, *, batch_size=128, limit=200, seed=0, verbose=1):
    """Looks for signs that attacks on a classifier fail for other reasons than that it holds.

    Runs PGD at growing epsilon, with more steps and with restarts, random noise, Square and, given a source, a
    transfer attack, and looks at outputs and gradients themselves. A flag is a reason to look closer; that nothing is
    flagged is no proof of robustness.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        data: as in `keras_mart.evaluate`.
        threat: the ball that the robustness is claimed for, of positive epsilon.
        source: another classifier of the same task, trained independently, for the transfer check.
        batch_size: used where the data are arrays.
        limit: number of examples, the first ones.
        seed: integer.
        verbose: as in `keras_mart.evaluate`.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: an epsilon of 0, and where `keras_mart.evaluate` raises it.

    Reference: Athalye et al., arXiv 1802.00420, section 3; Carlini et al., arXiv 1902.06705.
    """
    if not threat.epsilon > 0:
        raise ValueError(f"`threat` must have a positive epsilon: at 0 there is nothing to check. Received: {threat!r}")
    network = network_of(model)
    images, labels = taken(data, batch_size, limit)
    ladder = _ladder(threat, images.shape[1:])
    attacks = {f"at {each:g}": _Rung(PGD(threat, STEPS), each) for each in ladder[1:]}
    attacks |= {
        "few": PGD(threat, FEW_STEPS),
        "many": PGD(threat, MANY_STEPS),
        "restarts": PGD(threat, STEPS, restarts=RESTARTS),
        "noise": Noise(threat, NOISE_SAMPLES),
    }
    if len(images.shape) == 4:
        attacks["square"] = Square(threat, SQUARE_QUERIES)
    if source is not None:
        attacks["transfer"] = Transfer(source, PGD(threat, STEPS))
    table = evaluate(network, (images, labels), attacks, batch_size=batch_size, seed=seed, verbose=verbose)
    once = f"at {threat.epsilon:g}"
    accuracies = [table["natural"], *(table[f"at {each:g}"] for each in ladder[1:])]
    outputs, gradients = _probe(network, images, labels, batch_size)
    found = (
        _deterministic(outputs, _probe(network, images, labels, batch_size)[0]),
        _looks_like_logits(outputs),
        _gradients(gradients),
        _epsilon(ladder, accuracies),
        _steps(table, once),
        _restarts(table),
        _noise(table, once),
        _black_box(table, once, "square", f"Square with {SQUARE_QUERIES:,} queries"),
        _black_box(table, once, "transfer", "PGD on the source model"),
    )
    curve = {"epsilon": ladder, "accuracy": accuracies, "examples": table.examples, "attack": f"PGD-{STEPS}"}
    return Diagnosis(threat, table.examples, found, curve)


@dataclasses.dataclass(frozen=True)
class _Rung:
    """An attack at another epsilon, its step size scaled alike: traced once for all of them."""

    attack: PGD
    epsilon: float

    @property
    def gradients(self):
        return self.attack.gradients

    def __call__(self, network, images, labels, seed):
        signature = [tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32")]
        signature += [tf.TensorSpec([2], "int32"), tf.TensorSpec([])]
        return traced(network, ("rung", self.attack), self._perturb, signature)(images, labels, seed, self.epsilon)

    def _perturb(self, logits, images, labels, seed, epsilon):
        def objective(candidates):
            return self.attack.loss(labels, logits(candidates))

        return self.attack.maximise(objective, images, epsilon, seed)


def _ladder(threat, shape):
    """Growing epsilons: 0, multiples of the threat's, and one that leaves no image out of reach."""
    everything = math.sqrt(math.prod(shape)) if isinstance(threat, L2) else 1.0
    below = [threat.epsilon * multiple for multiple in MULTIPLES]
    return [0.0, *(each for each in below if each < everything or each == threat.epsilon), everything]


def _probe(network, images, labels, batch_size):
    """([examples, classes] logits, [examples, ...] gradients of the cross-entropy), as they are in float32."""
    signature = [tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32")]
    function = traced(network, "probe", _logits_and_gradients, signature)
    labels = labels.reshape(-1).astype("int32")
    parts = [
        function(images[start : start + batch_size].astype("float32"), labels[start : start + batch_size])
        for start in range(0, len(images), batch_size)
    ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _logits_and_gradients(logits, images, labels):
    def objective(candidates):
        outputs = logits(candidates)
        return cross_entropy(labels, outputs), outputs

    gradient, _, outputs = gradient_of(objective, images)
    return outputs, gradient


def _check(name, flagged, figure, meaning):
    return Check(name, FLAGGED if flagged else PASSED, figure, meaning)


def _deterministic(outputs, again):
    norm = np.linalg.norm(outputs, axis=1, keepdims=True) + np.finfo("float32").tiny
    difference = float(np.max(np.abs(outputs - again) / norm))
    return _check(
        "deterministic", not difference <= REPEATABLE,
        f"outputs of the same images differ by {difference:.1e} of their norm",
        "A network that answers at random must be attacked with averaged gradients: AutoAttack(version='rand').",
    )  # fmt: skip


def _looks_like_logits(outputs):
    highest = np.sort(outputs, axis=1)
    gap = float(np.median(highest[:, -1] - highest[:, -2]))
    return _check(
        "looks_like_logits", not gap < SATURATED, f"median gap between the two largest outputs {gap:.3g}",
        "Outputs so far apart saturate the softmax: the cross-entropy's gradient is 0, and attacks that climb it "
        "fail. Attack the margin instead (CW, APGDDLR, AutoAttack), or divide the logits by a constant.",
    )  # fmt: skip


def _gradients(gradients):
    flat = gradients.reshape(len(gradients), -1)
    entries, examples = float(np.mean(flat == 0)), float(np.mean(np.all(flat == 0, axis=1)))
    return _check(
        "gradients_do_not_vanish", examples > ZERO_EXAMPLES or not np.isfinite(flat).all(),
        f"exactly 0: {entries:.1%} of all entries, {examples:.1%} of the examples entirely",
        "Where the gradient is 0 an attack that follows it stands still, and its accuracy says nothing. Rounding, "
        "thresholds and saturation do this; attack an approximation that has a gradient (Athalye et al., BPDA).",
    )  # fmt: skip


def _epsilon(ladder, accuracies):
    rises = max(np.diff(accuracies))
    return _check(
        "falls_with_epsilon", rises > TOLERANCE or accuracies[-1] > TOLERANCE,
        f"{accuracies[0]:.1%} at 0, {accuracies[-1]:.1%} at {ladder[-1]:g}, which reaches every image; "
        f"largest rise on the way {max(rises, 0):.1%}",
        "A larger ball holds the smaller one, and one that holds all images leaves nothing to defend: where accuracy "
        "rises, or stays up at the end, the attack fails.",
    )  # fmt: skip


def _steps(table, once):
    few, some, many = table["few"], table[once], table["many"]
    return _check(
        "more_steps_do_not_help", many > some + TOLERANCE or some > few + TOLERANCE,
        f"PGD-{FEW_STEPS} {few:.1%}, PGD-{STEPS} {some:.1%}, PGD-{MANY_STEPS} {many:.1%}",
        "More steps only help the adversary. Where accuracy rises with them the attack is badly tuned or misled.",
    )  # fmt: skip


def _restarts(table):
    once, again = table["many"], table["restarts"]
    return _check(
        "restarts_barely_matter", once > again + TOLERANCE,
        f"PGD-{MANY_STEPS} {once:.1%}, the worst of {RESTARTS} runs of PGD-{STEPS}, which cost as much, {again:.1%}",
        "Where the outcome depends on the start, the attack follows a rugged loss and one run flatters.",
    )  # fmt: skip


def _noise(table, once):
    correct = table.outcomes
    broken = correct["natural"] & ~correct[once]
    by_noise = np.sum(correct["natural"] & ~correct["noise"])
    figure = f"PGD-{STEPS} breaks {np.sum(broken)} examples, the worst of {NOISE_SAMPLES} random points {by_noise}"
    meaning = "Following the gradient must break far more than random noise; else the gradient misleads."
    if not np.any(broken) and not by_noise:
        return Check("noise_is_weaker", SKIPPED, f"{figure}: nothing to compare", meaning)
    return _check("noise_is_weaker", by_noise > NOISE_SHARE * np.sum(broken), figure, meaning)


def _black_box(table, once, name, words):
    meaning = "An attack that sees the network must be at least as strong as one that does not; else it is misled."
    if name not in table.predictions:
        reason = "no source model was given" if name == "transfer" else "the inputs are no images"
        return Check(f"stronger_than_{name}", SKIPPED, reason, meaning)
    correct = table.outcomes
    white = correct[once] & correct["few"] & correct["many"] & correct["restarts"]
    missed = float(np.mean(white & ~correct[name]))
    figure = f"{words} breaks {missed:.1%} of the examples that PGD leaves standing ({np.mean(white):.1%} do)"
    return _check(f"stronger_than_{name}", missed > TOLERANCE, figure, meaning)
