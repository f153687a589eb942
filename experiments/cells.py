"""What stands in a cell of the report's tables: an accuracy, or a difference, and how certain it is."""

import dataclasses
import functools
import statistics

import numpy as np

from experiments import study
from keras_mart.evaluation.table import QUANTILE, wilson

HOW = """Accuracies are in percent of the test images whose number stands below them (drawn at random, the same for all
runs), differences in points. `95.20 [94.2, 96.1]` is one run with its 95% Wilson interval: what other test images
might have given. `95.20 (94.85 to 95.60)` is the mean of several runs that differ in their seed, with the lowest and
the highest of them: how far trainings lie apart. Differences are of runs with the same seed; their 95% intervals
compare image by image (Agresti and Min's, for the mean over the seeds) and know nothing of other trainings. Networks
and attacks computed in the precision of the training; bfloat16 tells grey values between 0.5 and 1 apart in steps of
0.0039, an eighth of CIFAR-10's 8/255. (Runs made anew are judged in float32.)"""
NOTHING = "-"


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An accuracy; `outcomes`: [examples] booleans, whether each test image was classified correctly."""

    outcomes: np.ndarray

    @property
    def examples(self):
        return len(self.outcomes)

    @functools.cached_property
    def accuracy(self):
        return float(np.mean(self.outcomes))

    @property
    def interval(self):
        """(low, high)"""
        return wilson(self.accuracy, self.examples)


def groups(results):
    """Name of a run without its seed to {seed: what is kept of the run}."""
    found = {}
    for name, record in results.items():
        found.setdefault(name.removesuffix(f"-{record['seed']}"), {})[record["seed"]] = record
    return found


def validated(row):
    """The validation accuracy under PGD-20 in a row of a run's history; runs of 0.1.0 had it in a column of its own."""
    return row.get("val_pgd20_accuracy", row.get("val_adversarial_accuracy"))


def validations(record):
    """Epoch to validation accuracy under PGD-20, for the epochs that a run validated after."""
    rows = ((int(row["epoch"]), validated(row)) for row in record["history"])
    return {epoch: accuracy for epoch, accuracy in rows if accuracy is not None}


def values(runs, attack, which, evaluation=None):
    """Seed to `Value` of those runs that were judged by the attack: in the evaluation, or that with most examples."""
    found = {}
    for seed, record in runs.items():
        judged = [record["evaluations"].get(evaluation)] if evaluation else record["evaluations"].values()
        judged = [study.outcomes(each, which, attack) for each in judged if each and attack in each["outcomes"][which]]
        if judged:
            found[seed] = Value(max(judged, key=len))
    return found


def cell(values):
    """Text of one run's accuracy with its interval, or of the mean of several with their range."""
    if not values:
        return NOTHING
    accuracies = [each.accuracy for each in values.values()]
    if len(values) > 1:
        return f"{percent(statistics.mean(accuracies))} ({percent(min(accuracies))} to {percent(max(accuracies))})"
    (only,) = values.values()
    low, high = only.interval
    return f"{percent(only.accuracy)} [{percent(low, '.1f')}, {percent(high, '.1f')}]"


def differences(ours, theirs):
    """Seed to ours minus theirs, for the seeds that both have and judged on the same images."""
    both = [seed for seed in sorted(ours.keys() & theirs.keys()) if ours[seed].examples == theirs[seed].examples]
    return {seed: ours[seed].accuracy - theirs[seed].accuracy for seed in both}


def difference(ours, theirs, interval=False):
    """Text of ours minus theirs: one run's with its interval, or the mean of several with their range.

    Args:
        ours, theirs: seed to `Value`, of the same images.
        interval: whether to give the interval of the mean too.
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
    """(low, high) of the 95% interval of the mean difference of [runs][examples] outcomes, image by image.

    Two images more, whose differences cancel, keep it honest where few outcomes differ (Agresti and Min, Statistics in
    Medicine 24, 2005).
    """
    change = np.concatenate([np.mean(ours, axis=0) - np.mean(theirs, axis=0), [0.5**0.5, -(0.5**0.5)]])
    half = QUANTILE * change.std() / len(change) ** 0.5
    return change.mean() - half, change.mean() + half


def percent(share, form=".2f"):
    return format(100 * share, form)


def points(share, form="+z.2f"):
    return format(100 * share, form)


def markdown(head, rows):
    """Text of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
