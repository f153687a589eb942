"""The result of an evaluation, to print, save and compare."""

import dataclasses
import json
import math
import os
from typing import Any, Self

import numpy as np

from keras_mart import files
from keras_mart.threats import ROUNDING
from keras_mart.typing import ArrayLike

# The normal distribution's 97.5% quantile: intervals cover 95%.
QUANTILE = 1.959963984540054
WORST_CASE = "worst_case"
CUMULATIVE = "Each attack ran on the examples correct under all attacks before it; its accuracy counts those too."
# The version of the format of `Table.summary`, which docs/evaluation.md describes.
SCHEMA = 1
DISTANCES = "distances//"  # prefix of an entry in the file; names of attacks have no slash
# Names that no attack may have: they are used for rows, metrics and entries in the file.
RESERVED = ("natural", "adversarial", WORST_CASE, "labels", "record", "file", "allow_pickle")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A classifier's predictions for the same examples without an attack and under each attack.

    A row is named "natural", or by an attack, or `<attack>/<stage>` for the results after a stage of a compound attack.

    Attributes:
        labels: [examples] integers.
        predictions: row to [examples] predicted classes; "natural" comes first.
        seconds: row to the time it took.
        gradients: row to the number of gradients computed, each of one example; `None` if the attack does not state it.
        stop_early: whether each attack ran only on the examples classified correctly under all attacks before it.
        distances: name of an attack that looks for the nearest adversarial image, such as `FMN`, to the [examples]
            distances of these images in the attack's norm: 0 if the natural image is misclassified, infinite if no
            adversarial image was found.
        class_names: a name for each label, or `None`.
        record: description of the evaluation: the ball, the attacks with all parameters, the precision, the seed,
            versions, and SHA-256 checksums of weights and data. `summary` contains it.
    """

    labels: np.ndarray
    predictions: dict[str, np.ndarray]
    seconds: dict[str, float]
    gradients: dict[str, int | None]
    stop_early: bool = False
    distances: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    record: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def outcomes(self) -> dict[str, np.ndarray]:
        """Row to [examples] booleans, `True` if classified correctly; last "worst_case", correct in every row."""
        correct = {name: predicted == self.labels for name, predicted in self.predictions.items()}
        return {**correct, WORST_CASE: np.logical_and.reduce(list(correct.values()))}

    @property
    def accuracy(self) -> dict[str, float]:
        """Row to the share of examples classified correctly, in [0, 1]."""
        return {name: float(np.mean(correct)) for name, correct in self.outcomes.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Row to the 95% Wilson interval of its accuracy, (low, high)."""
        return {name: wilson(accuracy, self.examples) for name, accuracy in self.accuracy.items()}

    @property
    def class_accuracy(self) -> dict[str, dict[str, Any]]:
        """Name of each class that occurs to {"label", "examples", "natural", "worst_case"}: number and accuracies."""
        outcomes, found = self.outcomes, {}
        for label in map(int, np.unique(self.labels)):
            of_class = self.labels == label
            accuracies = {name: float(np.mean(outcomes[name][of_class])) for name in ("natural", WORST_CASE)}
            found[self.class_name(label)] = {"label": label, "examples": int(np.sum(of_class)), **accuracies}
        return found

    @property
    def worst_class(self) -> str:
        """Name of the class with the lowest worst-case accuracy; ties go to the lowest natural accuracy."""
        classes = self.class_accuracy
        return min(classes, key=lambda name: (classes[name][WORST_CASE], classes[name]["natural"]))

    def class_name(self, label: int) -> str:
        """Returns the name of a class: its number if it has no name, both if another class has the same name."""
        names = self.class_names or ()
        if not 0 <= label < len(names):
            return str(label)
        return names[label] if names.count(names[label]) == 1 else f"{names[label]} ({label})"

    def curve(self, name: str, epsilons: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns accuracy against epsilon, from one run of an attack that looks for the nearest adversarial image.

        Args:
            name: name of the attack.
            epsilons: sizes of the ball, in the attack's norm; by default 0 and every size at which the accuracy
                changes.

        Returns:
            (epsilons, accuracies), two arrays: an example counts as correct at every epsilon below its distance.

        Raises:
            ValueError: if the attack has no distances.
        """
        if name not in self.distances:
            known = ", ".join(self.distances) or "none"
            raise ValueError(f"`name` must be that of an attack with distances (here: {known}). Received: {name!r}")
        distances = np.sort(self.distances[name]).astype("float64")
        if epsilons is None:
            epsilons = np.unique([0.0, *distances[np.isfinite(distances)]])
        epsilons = np.asarray(epsilons)
        within = np.searchsorted(distances, epsilons * (1 + ROUNDING), side="right")  # as the attack's row counts
        return epsilons, (self.examples - within) / self.examples

    def __getitem__(self, name: str) -> float:
        """Returns the accuracy in the row of this name, such as "natural", an attack's, or "worst_case"."""
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
        lines.append(f"({', '.join([f'{self.examples:,} examples', *filter(None, [self.record.get('precision')])])})")
        classes = self.class_accuracy
        if len(classes) > 1:
            worst = classes[self.worst_class]
            accuracies = f"{worst[WORST_CASE]:.2%} in the worst case, {worst['natural']:.2%} natural"
            lines.append(f"Worst of {len(classes)} classes: {self.worst_class}, {accuracies}.")
        if self.stop_early:
            lines.append(CUMULATIVE)
        return "\n".join(lines)

    def to_json(self) -> str:
        """Returns `summary` as an indented JSON object; docs/evaluation.md describes it."""
        return json.dumps(self.summary(), indent=2)

    def summary(self) -> dict[str, Any]:
        """Returns the table without the results of single examples, which `save` writes, as a dictionary."""
        return {
            "schema": SCHEMA,
            **self.record,
            "examples": self.examples,
            "accuracy": self.accuracy,
            "interval": self.intervals,
            "seconds": self.seconds,
            "gradients": self.gradients,
            "stop_early": self.stop_early,
            "class_names": self.class_names,
            "classes": self.class_accuracy,
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes the results of each example to an npz file: `labels`, the predicted classes of each row, distances.

        The file is written atomically and replaces an older one.
        """
        names = ("seconds", "gradients", "stop_early", "class_names", "record")
        record = {name: getattr(self, name) for name in names}
        distances = {DISTANCES + name: values for name, values in self.distances.items()}
        arrays: dict[str, Any] = {"labels": self.labels, "record": json.dumps(record), **distances, **self.predictions}
        # An open file, because NumPy would append ".npz" to a path.
        with files.atomic_file(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads a table that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        labels, record = arrays.pop("labels"), json.loads(str(arrays.pop("record")))
        record["class_names"] = record.get("class_names") and tuple(record["class_names"])
        distances = {name.removeprefix(DISTANCES): arrays.pop(name) for name in [*arrays] if name.startswith(DISTANCES)}
        return cls(labels, arrays, distances=distances, **record)


def wilson(accuracy, examples):
    """Returns the 95% Wilson interval (low, high) of an accuracy measured on the given number of examples."""
    spread = QUANTILE**2 / examples
    centre = (accuracy + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (accuracy * (1 - accuracy) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
