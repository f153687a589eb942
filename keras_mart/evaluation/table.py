"""The result of an evaluation, to print and to keep."""

import dataclasses
import json
import math

import numpy as np

from keras_mart import files

# The normal distribution's 97.5% quantile: intervals cover 95%.
QUANTILE = 1.959963984540054
WORST_CASE = "worst_case"
CUMULATIVE = "Each attack ran on what was correct under all before it, and its figure counts them too."
# Names that no attack may have: rows, metrics and entries of the file have them.
RESERVED = ("natural", "adversarial", WORST_CASE, "labels", "record", "file", "allow_pickle")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """What one classifier said to the same examples: natural, then under each attack.

    The stages of a compound attack have names of their own, `<attack>/<stage>`, and say how things stood after them.

    Attributes:
        labels: [examples] integers.
        predictions: name to [examples] predicted classes; "natural" comes first.
        seconds: name to the time it took.
        gradients: name to the number of gradients computed, each of one example; `None` where an attack does not say.
        stop_early: whether an attack ran only on the examples that were classified correctly under all before it.
    """

    labels: np.ndarray
    predictions: dict
    seconds: dict
    gradients: dict
    stop_early: bool = False
    distances: dict = dataclasses.field(default_factory=dict)
    class_names: tuple | None = None
    record: dict = dataclasses.field(default_factory=dict)

    @property
    def examples(self):
        """Number of examples."""
        return len(self.labels)

    @property
    def outcomes(self):
        """Name to [examples] booleans, whether each was classified correctly; last "worst_case", under everything."""
        correct = {name: predicted == self.labels for name, predicted in self.predictions.items()}
        return {**correct, WORST_CASE: np.logical_and.reduce(list(correct.values()))}

    @property
    def accuracy(self):
        """Name to the share of examples classified correctly, in [0, 1]."""
        return {name: float(np.mean(correct)) for name, correct in self.outcomes.items()}

    @property
    def intervals(self):
        """Name to the accuracy's 95% Wilson interval, (low, high)."""
        return {name: wilson(accuracy, self.examples) for name, accuracy in self.accuracy.items()}

    def __getitem__(self, name):
        """The accuracy under the attack of that name, "natural", or "worst_case"."""
        return self.accuracy[name]

    def __str__(self):
        width = max(map(len, self.accuracy))
        lines = [f"{'attack':<{width}}  accuracy  95% interval          seconds   gradients"]
        for name, accuracy in self.accuracy.items():
            low, high = self.intervals[name]
            line = f"{name:<{width}}  {accuracy:>7.2%}   {low:>7.2%} to {high:>7.2%}"
            if name in self.seconds:
                gradients = "-" if self.gradients[name] is None else f"{self.gradients[name]:,}"
                line += f"  {self.seconds[name]:>8.1f}  {gradients:>10}"
            lines.append(line)
        lines.append(f"({self.examples:,} examples)")
        if self.stop_early:
            lines.append(CUMULATIVE)
        return "\n".join(lines)

    def to_json(self):
        """The table as a JSON object, indented; without the single examples, which `save` keeps."""
        return json.dumps(self.summary(), indent=2)

    def summary(self):
        """What `to_json` says, as a dictionary."""
        return {
            "examples": self.examples,
            "accuracy": self.accuracy,
            "interval": self.intervals,
            "seconds": self.seconds,
            "gradients": self.gradients,
            "stop_early": self.stop_early,
        }

    def save(self, path):
        """Writes the outcome of each example to an npz file: `labels`, and the predicted classes under each name.

        It is written whole or not at all, in the place of an older one.
        """
        record = {"seconds": self.seconds, "gradients": self.gradients, "stop_early": self.stop_early}
        # Given a name, NumPy would add ".npz" to it.
        with files.whole(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, labels=self.labels, record=json.dumps(record), **self.predictions)

    @classmethod
    def concatenate(cls, tables):
        """The table of all examples from those of their batches."""
        names = tables[0].predictions

        def total(field, name):
            parts = [getattr(table, field)[name] for table in tables]
            return None if None in parts else sum(parts)

        return cls(
            np.concatenate([table.labels for table in tables]),
            {name: np.concatenate([table.predictions[name] for table in tables]) for name in names},
            *({name: total(field, name) for name in names} for field in ("seconds", "gradients")),
            tables[0].stop_early,
        )

    @classmethod
    def load(cls, path):
        """The table that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        record = json.loads(str(arrays.pop("record")))
        return cls(arrays.pop("labels"), arrays, **record)


def wilson(accuracy, examples):
    """(low, high) of the 95% Wilson interval of an accuracy that so many examples gave."""
    spread = QUANTILE**2 / examples
    centre = (accuracy + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (accuracy * (1 - accuracy) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def side_by_side(tables):
    """Text of several tables' accuracies, one row each, without the stages of compound attacks.

    Args:
        tables: row name to `Table`; all with the same attacks.
    """
    attacks = [name for name in next(iter(tables.values())).accuracy if "/" not in name]
    first = max(map(len, ["method", *tables]))
    widths = [max(len(attack), len("100.00%")) for attack in attacks]
    lines = ["  ".join([f"{'method':<{first}}", *map("{:>{}}".format, attacks, widths)])]
    for name, table in tables.items():
        cells = [f"{table[attack]:>{width}.2%}" for attack, width in zip(attacks, widths, strict=True)]
        lines.append("  ".join([f"{name:<{first}}", *cells]))
    if any(table.stop_early for table in tables.values()):
        lines.append(CUMULATIVE)
    return "\n".join(lines)
