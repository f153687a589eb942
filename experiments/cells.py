"""Cells of the report's tables: accuracies and differences with their intervals or ranges."""

import dataclasses
import functools
import statistics

import numpy as np

from experiments import study
from keras_mart.evaluation.table import QUANTILE, wilson

EXPLANATION = """Accuracies are percentages of the test images, which were drawn at random and are the same for all
runs; the last row of a table gives their number. Differences are in percentage points. `95.20 [94.2, 96.1]` is one
run with its 95% Wilson interval, which covers the choice of test images. `95.20 (94.85 to 95.60)` is the mean of
several runs with different seeds, with the lowest and the highest of them, which show how much trainings differ.
Differences are between runs with the same seed. Their 95% intervals compare image by image (Agresti and Min's
method, applied to the mean over the seeds) and do not cover the variation between trainings. Networks and attacks
ran in the precision of the training; between 0.5 and 1, bfloat16 represents grey values in steps of 0.0039, an
eighth of CIFAR-10's 8/255. (New runs are evaluated in float32.)"""
NOTHING = "-"


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An accuracy.

    Attributes:
        outcomes: [examples] booleans, whether each test image was classified correctly.
    """

    outcomes: np.ndarray

    @property
    def examples(self):
        return len(self.outcomes)

    @functools.cached_property
    def accuracy(self):
        return float(np.mean(self.outcomes))

    @property
    def interval(self):
        """The 95% Wilson interval (low, high)."""
        return wilson(self.accuracy, self.examples)


def groups(results):
    """Groups the results by run: returns {name without the seed: {seed: record}}."""
    found = {}
    for name, record in results.items():
        found.setdefault(name.removesuffix(f"-{record['seed']}"), {})[record["seed"]] = record
    return found


def validated(row):
    """Returns the validation accuracy under PGD-20 in a row of a history; 0.1.0 had a separate column for it."""
    return row.get("val_pgd20_accuracy", row.get("val_adversarial_accuracy"))


def validations(record):
    """Returns {epoch: validation accuracy under PGD-20} for the epochs after which a run was validated."""
    rows = ((int(row["epoch"]), validated(row)) for row in record["history"])
    return {epoch: accuracy for epoch, accuracy in rows if accuracy is not None}


def values(runs, attack, which, evaluation=None):
    """Returns {seed: `Value`} of the runs that were evaluated under an attack.

    Args:
        runs: {seed: record}.
        attack: name of the attack.
        which: "best" or "last".
        evaluation: name of the evaluation to read; by default the one with the most examples.
    """
    found = {}
    for seed, record in runs.items():
        evaluations = [record["evaluations"].get(evaluation)] if evaluation else record["evaluations"].values()
        evaluations = [each for each in evaluations if each and attack in each["outcomes"][which]]
        if evaluations:
            found[seed] = Value(max((study.outcomes(each, which, attack) for each in evaluations), key=len))
    return found


def cell(values):
    """Formats the accuracy of one run with its interval, or the mean of several with their range."""
    if not values:
        return NOTHING
    accuracies = [each.accuracy for each in values.values()]
    if len(values) > 1:
        return f"{percent(statistics.mean(accuracies))} ({percent(min(accuracies))} to {percent(max(accuracies))})"
    (only,) = values.values()
    low, high = only.interval
    return f"{percent(only.accuracy)} [{percent(low, '.1f')}, {percent(high, '.1f')}]"


def differences(ours, theirs):
    """Returns {seed: ours minus theirs} for the seeds that both evaluated on the same images."""
    both = [seed for seed in sorted(ours.keys() & theirs.keys()) if ours[seed].examples == theirs[seed].examples]
    return {seed: ours[seed].accuracy - theirs[seed].accuracy for seed in both}


def difference(ours, theirs, interval=False):
    """Formats ours minus theirs: for one run with its interval, for several the mean with their range.

    Args:
        ours, theirs: {seed: `Value`} on the same images.
        interval: whether to add the interval of the mean.
    """
    found = differences(ours, theirs)
    if not found:
        return NOTHING
    text = points(statistics.mean(found.values()))
    if len(found) > 1:
        text += f" ({points(min(found.values()))} to {points(max(found.values()))})"
    if interval or len(found) == 1:
        low, high = _paired(*([each[seed].outcomes for seed in found] for each in (ours, theirs)))
        text += f" [{points(low, '+z.1f')}, {points(high, '+z.1f')}]"
    return text


def _paired(ours, theirs):
    """Returns (low, high), the paired 95% interval of the mean difference of [runs][examples] outcomes.

    Two pseudo-images with opposite differences keep the interval from being too narrow where few outcomes differ
    (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    change = np.concatenate([np.mean(ours, axis=0) - np.mean(theirs, axis=0), [0.5**0.5, -(0.5**0.5)]])
    half = QUANTILE * change.std() / len(change) ** 0.5
    return change.mean() - half, change.mean() + half


def percent(share, form=".2f"):
    return format(100 * share, form)


def points(share, form="+z.2f"):
    return format(100 * share, form)


def markdown(head, rows):
    """Formats a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
