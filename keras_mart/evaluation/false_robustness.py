"""The checks of `diagnose`: each turns measurements into a verdict, a figure and an explanation."""

import dataclasses

import numpy as np

PASSED, FLAGGED, SKIPPED = "passed", "flagged", "skipped"
# Steps, restarts, random points and queries of the attacks that are compared.
FEW_STEPS, STEPS, MANY_STEPS, RESTARTS = 10, 20, 100, 5
NOISE_SAMPLES, SQUARE_QUERIES = 10, 1000
# Smaller differences in accuracy are attributed to chance.
TOLERANCE = 0.05
# The largest acceptable share of examples whose gradient is exactly 0. Single entries do not count: ReLU networks
# trained on black borders, or adversarially, have a gradient of 0 at half of the pixels or more.
ZERO_EXAMPLES = 0.05
# The largest acceptable number of examples that noise breaks, as a share of those that PGD breaks.
NOISE_SHARE = 0.5
# Outputs for the same images may differ by this share of their norm (as in the official AutoAttack).
REPEATABLE = 1e-4
# The gap between the two largest logits above which the gradient of the cross-entropy is 0 in float32.
SATURATED = 80.0


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: name of the check.
        verdict: "passed", "flagged" or "skipped".
        figure: the measured values, as text.
        meaning: why the check matters, and what to do if it is flagged.
    """

    name: str
    verdict: str
    figure: str
    meaning: str


def _check(name, flagged, figure, meaning):
    return Check(name, FLAGGED if flagged else PASSED, figure, meaning)


def deterministic(outputs, again):
    """Checks that the network returns the same [examples, classes] outputs for the same images."""
    norm = np.linalg.norm(outputs, axis=1, keepdims=True) + np.finfo("float32").tiny
    difference = float(np.max(np.abs(outputs - again) / norm))
    return _check(
        "deterministic", not difference <= REPEATABLE,
        f"outputs for the same images differ by {difference:.1e} of their norm",
        "A network with random outputs must be attacked with averaged gradients: AutoAttack(version='rand').",
    )  # fmt: skip


def looks_like_logits(outputs):
    """Checks that [examples, classes] outputs do not saturate the cross-entropy."""
    highest = np.sort(outputs, axis=1)
    gap = float(np.median(highest[:, -1] - highest[:, -2]))
    return _check(
        "looks_like_logits", not gap < SATURATED, f"median gap between the two largest outputs {gap:.3g}",
        "Outputs this far apart saturate the softmax: the gradient of the cross-entropy is 0, and attacks that "
        "follow it fail. Attack the margin instead (CW, APGDDLR, AutoAttack), or divide the logits by a constant.",
    )  # fmt: skip


def gradients(values):
    """Checks that the [examples, ...] gradients are finite and not 0."""
    flat = values.reshape(len(values), -1)
    entries, examples = float(np.mean(flat == 0)), float(np.mean(np.all(flat == 0, axis=1)))
    return _check(
        "gradients_do_not_vanish", examples > ZERO_EXAMPLES or not np.isfinite(flat).all(),
        f"gradient exactly 0 in {entries:.1%} of all entries, and in every entry of {examples:.1%} of the examples",
        "Where the gradient is 0, a gradient-based attack cannot move, and the accuracy under it means nothing. "
        "Rounding, thresholds and saturation cause this; attack a differentiable approximation (BPDA, Athalye et al.).",
    )  # fmt: skip


def epsilon(epsilons, accuracies):
    """Checks that accuracy falls to 0 over increasing epsilons."""
    rises = max(np.diff(accuracies))
    return _check(
        "falls_with_epsilon", rises > TOLERANCE or accuracies[-1] > TOLERANCE,
        f"{accuracies[0]:.1%} at epsilon 0, {accuracies[-1]:.1%} at {epsilons[-1]:g}, which contains every image; "
        f"largest rise in between {max(rises, 0):.1%}",
        "A larger ball contains every smaller one, and in a ball that contains every image no classifier is robust. If "
        "accuracy rises with epsilon, or does not reach 0, the attack fails.",
    )  # fmt: skip


def steps(table, pgd):
    """Checks that accuracy does not rise with the number of PGD steps; `pgd` names the row of the default number."""
    few, some, many = table["few"], table[pgd], table["many"]
    return _check(
        "more_steps_do_not_help", many > some + TOLERANCE or some > few + TOLERANCE,
        f"PGD-{FEW_STEPS} {few:.1%}, PGD-{STEPS} {some:.1%}, PGD-{MANY_STEPS} {many:.1%}",
        "More steps can only help the attack. If accuracy rises with them, the attack is badly tuned or the gradient "
        "misleads it.",
    )  # fmt: skip


def restarts(table):
    """Checks that one long run of PGD is about as strong as several short ones."""
    once, restarted = table["many"], table["restarts"]
    return _check(
        "restarts_barely_matter", once > restarted + TOLERANCE,
        f"PGD-{MANY_STEPS} {once:.1%}, worst of {RESTARTS} runs of PGD-{STEPS} at the same cost {restarted:.1%}",
        "If the result depends on the starting point, the loss surface is rugged and a single run overestimates "
        "robustness.",
    )  # fmt: skip


def noise(table, pgd):
    """Checks that PGD breaks far more examples than random points do."""
    correct = table.outcomes
    broken = correct["natural"] & ~correct[pgd]
    by_noise = np.sum(correct["natural"] & ~correct["noise"])
    figure = f"PGD-{STEPS} breaks {np.sum(broken)} examples, the worst of {NOISE_SAMPLES} random points {by_noise}"
    meaning = "Following the gradient must break far more examples than random noise; otherwise the gradient misleads."
    if max(np.sum(broken), by_noise) <= TOLERANCE * table.examples:
        return Check("noise_is_weaker", SKIPPED, f"{figure}: too few to compare", meaning)
    return _check("noise_is_weaker", by_noise > NOISE_SHARE * np.sum(broken), figure, meaning)


def black_box(table, pgd, name, description):
    """Checks that the attack in row `name`, without access to the network, breaks few examples that PGD does not."""
    meaning = (
        "A white-box attack must be at least as strong as one without access to the network; otherwise the gradient "
        "misleads it."
    )
    if name not in table.predictions:
        reason = "no source model was given" if name == "transfer" else "the inputs are not images"
        return Check(f"stronger_than_{name}", SKIPPED, reason, meaning)
    correct = table.outcomes
    white = correct[pgd] & correct["few"] & correct["many"] & correct["restarts"]
    missed = float(np.mean(white & ~correct[name]))
    figure = (
        f"{np.mean(white):.1%} of the examples are still correct after PGD; {description} breaks another {missed:.1%}"
    )
    return _check(f"stronger_than_{name}", missed > TOLERANCE, figure, meaning)
