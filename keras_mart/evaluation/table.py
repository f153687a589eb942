"""The result of an evaluation, to print and to keep."""

import dataclasses
import json
import math

import numpy as np

from keras_mart import files
from keras_mart.threats import ROUNDING

# The normal distribution's 97.5% quantile: intervals cover 95%.
QUANTILE = 1.959963984540054
WORST_CASE = "worst_case"
CUMULATIVE = "Each attack ran on what was correct under all before it, and its figure counts them too."
# The version of what `Table.summary` gives, which docs/evaluation.md describes.
SCHEMA = 1
DISTANCES = "distances//"  # begins an entry of the file, as no attack's name does
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
        distances: name of an attack that looks for the nearest adversarial image, such as `FMN`, to [examples] how far
            that is in the attack's norm: 0 where the natural image is misclassified, infinite where none was found.
        class_names: a name for each label, or `None`.
        record: what was evaluated, as `summary` says it: the ball, the attacks with all parameters, the precision, the
            seed, versions, and SHA-256 checksums of weights and data.
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

    @property
    def class_accuracy(self):
        """Name of each class that occurs to {"label", "examples", "natural", "worst_case"}: number and accuracies."""
        outcomes, found = self.outcomes, {}
        for label in map(int, np.unique(self.labels)):
            of_class = self.labels == label
            accuracies = {name: float(np.mean(outcomes[name][of_class])) for name in ("natural", WORST_CASE)}
            found[self.class_name(label)] = {"label": label, "examples": int(np.sum(of_class)), **accuracies}
        return found

    @property
    def worst_class(self):
        """The name of the class with the lowest accuracy in the worst case, and of several with the lowest natural."""
        classes = self.class_accuracy
        return min(classes, key=lambda name: (classes[name][WORST_CASE], classes[name]["natural"]))

    def class_name(self, label):
        """The name of a class, its number where it has no name, and both where another class has the same name."""
        names = self.class_names or ()
        if not 0 <= label < len(names):
            return str(label)
        return names[label] if names.count(names[label]) == 1 else f"{names[label]} ({label})"

    def curve(self, name, epsilons=None):
        """Accuracy against epsilon, from one run of an attack that looks for the nearest adversarial image.

        Args:
            name: the attack's.
            epsilons: sizes of the ball, in the attack's norm; by default 0 and each at which the accuracy changes.

        Returns:
            (epsilons, accuracies), two arrays: an example is counted as correct at all epsilons below its distance.

        Raises:
            ValueError: an attack without distances.
        """
        if name not in self.distances:
            known = ", ".join(self.distances) or "none"
            raise ValueError(f"`name` must be of an attack with distances (here: {known}). Received: {name!r}")
        distances = np.sort(self.distances[name]).astype("float64")
        if epsilons is None:
            epsilons = np.unique([0.0, *distances[np.isfinite(distances)]])
        epsilons = np.asarray(epsilons)
        within = np.searchsorted(distances, epsilons * (1 + ROUNDING), side="right")  # as the attack's row counts
        return epsilons, (self.examples - within) / self.examples

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
        lines.append(f"({', '.join([f'{self.examples:,} examples', *filter(None, [self.record.get('precision')])])})")
        classes = self.class_accuracy
        if len(classes) > 1:
            worst = classes[self.worst_class]
            accuracies = f"{worst[WORST_CASE]:.2%} in the worst case, {worst['natural']:.2%} natural"
            lines.append(f"Worst of {len(classes)} classes: {self.worst_class}, {accuracies}.")
        if self.stop_early:
            lines.append(CUMULATIVE)
        return "\n".join(lines)

    def to_json(self):
        """`summary` as a JSON object, indented; docs/evaluation.md describes it."""
        return json.dumps(self.summary(), indent=2)

    def summary(self):
        """All but the single examples, which `save` keeps, as a dictionary."""
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

    def save(self, path):
        """Writes each example's outcome to an npz file: `labels`, the predicted classes under each name, distances.

        It is written whole or not at all, in the place of an older one.
        """
        names = ("seconds", "gradients", "stop_early", "class_names", "record")
        record = {name: getattr(self, name) for name in names}
        distances = {DISTANCES + name: values for name, values in self.distances.items()}
        # Given a name, NumPy would add ".npz" to it.
        with files.atomic_file(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, labels=self.labels, record=json.dumps(record), **distances, **self.predictions)

    @classmethod
    def load(cls, path):
        """The table that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        labels, record = arrays.pop("labels"), json.loads(str(arrays.pop("record")))
        record["class_names"] = record.get("class_names") and tuple(record["class_names"])
        distances = {name.removeprefix(DISTANCES): arrays.pop(name) for name in [*arrays] if name.startswith(DISTANCES)}
        return cls(labels, arrays, distances=distances, **record)


def wilson(accuracy, examples):
    """(low, high) of the 95% Wilson interval of an accuracy that so many examples gave."""
    spread = QUANTILE**2 / examples
    centre = (accuracy + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (accuracy * (1 - accuracy) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
