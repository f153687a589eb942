"""The signs of false robustness: what was measured, the verdict, and what it means. `diagnose` measures."""

import dataclasses

import numpy as np

PASSED, FLAGGED, SKIPPED = "passed", "flagged", "skipped"
# How often the attacks that are compared step, start, draw and query.
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


def _check(name, flagged, figure, meaning):
    return Check(name, FLAGGED if flagged else PASSED, figure, meaning)


def deterministic(outputs, again):
    """Whether [examples, classes] outputs come again from the same images."""
    norm = np.linalg.norm(outputs, axis=1, keepdims=True) + np.finfo("float32").tiny
    difference = float(np.max(np.abs(outputs - again) / norm))
    return _check(
        "deterministic", not difference <= REPEATABLE,
        f"outputs of the same images differ by {difference:.1e} of their norm",
        "A network that answers at random must be attacked with averaged gradients: AutoAttack(version='rand').",
    )  # fmt: skip


def looks_like_logits(outputs):
    """Whether [examples, classes] outputs leave the cross-entropy a gradient."""
    highest = np.sort(outputs, axis=1)
    gap = float(np.median(highest[:, -1] - highest[:, -2]))
    return _check(
        "looks_like_logits", not gap < SATURATED, f"median gap between the two largest outputs {gap:.3g}",
        "Outputs so far apart saturate the softmax: the cross-entropy's gradient is 0, and attacks that climb it "
        "fail. Attack the margin instead (CW, APGDDLR, AutoAttack), or divide the logits by a constant.",
    )  # fmt: skip


def gradients(values):
    """Whether [examples, ...] gradients are there."""
    flat = values.reshape(len(values), -1)
    entries, examples = float(np.mean(flat == 0)), float(np.mean(np.all(flat == 0, axis=1)))
    return _check(
        "gradients_do_not_vanish", examples > ZERO_EXAMPLES or not np.isfinite(flat).all(),
        f"exactly 0: {entries:.1%} of all entries, {examples:.1%} of the examples entirely",
        "Where the gradient is 0 an attack that follows it stands still, and its accuracy says nothing. Rounding, "
        "thresholds and saturation do this; attack an approximation that has a gradient (Athalye et al., BPDA).",
    )  # fmt: skip


def epsilon(ladder, accuracies):
    """Whether accuracy falls to 0 on a ladder of growing epsilons."""
    rises = max(np.diff(accuracies))
    return _check(
        "falls_with_epsilon", rises > TOLERANCE or accuracies[-1] > TOLERANCE,
        f"{accuracies[0]:.1%} at 0, {accuracies[-1]:.1%} at {ladder[-1]:g}, which reaches every image; "
        f"largest rise on the way {max(rises, 0):.1%}",
        "A larger ball holds the smaller one, and one that holds all images leaves nothing to defend: where accuracy "
        "rises, or stays up at the end, the attack fails.",
    )  # fmt: skip


def steps(table, once):
    """Whether more steps of PGD leave fewer standing; `once` is the row of PGD as usual."""
    few, some, many = table["few"], table[once], table["many"]
    return _check(
        "more_steps_do_not_help", many > some + TOLERANCE or some > few + TOLERANCE,
        f"PGD-{FEW_STEPS} {few:.1%}, PGD-{STEPS} {some:.1%}, PGD-{MANY_STEPS} {many:.1%}",
        "More steps only help the adversary. Where accuracy rises with them the attack is badly tuned or misled.",
    )  # fmt: skip


def restarts(table):
    """Whether one long run of PGD finds what several short ones do."""
    once, again = table["many"], table["restarts"]
    return _check(
        "restarts_barely_matter", once > again + TOLERANCE,
        f"PGD-{MANY_STEPS} {once:.1%}, the worst of {RESTARTS} runs of PGD-{STEPS}, which cost as much, {again:.1%}",
        "Where the outcome depends on the start, the attack follows a rugged loss and one run flatters.",
    )  # fmt: skip


def noise(table, once):
    """Whether PGD breaks far more than random points."""
    correct = table.outcomes
    broken = correct["natural"] & ~correct[once]
    by_noise = np.sum(correct["natural"] & ~correct["noise"])
    figure = f"PGD-{STEPS} breaks {np.sum(broken)} examples, the worst of {NOISE_SAMPLES} random points {by_noise}"
    meaning = "Following the gradient must break far more than random noise; else the gradient misleads."
    if max(np.sum(broken), by_noise) <= TOLERANCE * table.examples:
        return Check("noise_is_weaker", SKIPPED, f"{figure}: too few to compare", meaning)
    return _check("noise_is_weaker", by_noise > NOISE_SHARE * np.sum(broken), figure, meaning)


def black_box(table, once, name, words):
    """Whether PGD, all of its rows together, breaks what the attack of that name does."""
    meaning = "An attack that sees the network must be at least as strong as one that does not; else it is misled."
    if name not in table.predictions:
        reason = "no source model was given" if name == "transfer" else "the inputs are no images"
        return Check(f"stronger_than_{name}", SKIPPED, reason, meaning)
    correct = table.outcomes
    white = correct[once] & correct["few"] & correct["many"] & correct["restarts"]
    missed = float(np.mean(white & ~correct[name]))
    figure = f"{words} breaks {missed:.1%} of the examples that PGD leaves standing ({np.mean(white):.1%} do)"
    return _check(f"stronger_than_{name}", missed > TOLERANCE, figure, meaning)
