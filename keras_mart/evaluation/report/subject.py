"""The data of a run that the report shows."""

import dataclasses
import fractions
import re

from keras_mart.evaluation.run import Run
from keras_mart.evaluation.table import WORST_CASE, Table, wilson

# Older files contain an attack's repr, which names its ball.
BALL = re.compile(r"threat=(\w+)\(epsilon=([^)]+)\)")


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A run in the report.

    Attributes:
        title: title of the run in the report.
        number: index of the run, from 0; it determines the colour.
        run: its `Run`.
        flags: the lines of flags.cfg.
        rows: the rows of history.csv, as dictionaries from columns to numbers; `None` for an empty cell.
        evaluation, diagnosis: the contents of the JSON files; empty if they are missing.
        table: the best checkpoint's predictions, a `Table` or `None`.
        gallery: dictionary of arrays, or `None`.
    """

    title: str
    number: int
    run: Run
    flags: list
    rows: list
    evaluation: dict
    diagnosis: dict
    table: Table | None
    gallery: dict | None

    @property
    def record(self):
        """Description of the evaluation: evaluation.json has it for each checkpoint, older files at the top level."""
        return self.evaluation | self.checkpoint("best")

    @property
    def parameters(self):
        """Name of each attack and stage to its parameters: a dictionary, in older files a repr."""
        found = {}
        for name, attack in self.record.get("attacks", {}).items():
            stages = attack.get("stages", {}) if isinstance(attack, dict) else {}
            found |= {name: attack, **{f"{name}/{stage}": of_stage for stage, of_stage in stages.items()}}
        return found

    @property
    def threat(self):
        """(norm, epsilon) of the ball it was evaluated in, or `None`."""
        return next(filter(None, map(ball, [self.record, self.diagnosis, *self.parameters.values()])), None)

    @property
    def diagnosed(self):
        """(norm, epsilon) of the ball in which it was checked for false robustness, or `None`."""
        return ball(self.diagnosis)

    @property
    def trained_epsilon(self):
        """The value of --epsilon, or `None` if it was not set."""
        try:
            return float(fractions.Fraction(flag(self.flags, "epsilon") or ""))
        except (ValueError, ZeroDivisionError):
            return None

    @property
    def examples(self):
        """Number of test examples, or `None`."""
        return self.checkpoint("best").get("examples")

    @property
    def one_checkpoint(self):
        """Whether the last checkpoint is also the best."""
        return self.checkpoint("best") == self.checkpoint("last")

    @property
    def stopped_early(self):
        """Whether the accuracy of a row counts all attacks up to it, not only its own."""
        return self.checkpoint("best").get("stop_early", False)

    def checkpoint(self, which):
        """Returns the summary of the table of the "best" or "last" checkpoint, empty if it is missing."""
        return self.evaluation.get(which) or {}

    def accuracy(self, which="best"):
        """Returns a dictionary from rows to accuracies."""
        return self.checkpoint(which).get("accuracy", {})

    def interval(self, name):
        """Returns the 95% interval of the best checkpoint's accuracy, recorded or computed."""
        return self.checkpoint("best").get("interval", {}).get(name) or wilson(self.accuracy()[name], self.examples)

    @property
    def hardest(self):
        """The row of the lowest accuracy: the worst case or, if that is missing, the strongest attack, or `None`."""
        if WORST_CASE in self.accuracy():
            return WORST_CASE
        return min(self.attacks, key=self.accuracy().get, default=None)

    @property
    def attacks(self):
        """The names of the attacks on the best checkpoint, without stages."""
        return attacks(self.accuracy())

    @property
    def nearest(self):
        """The name of an attack with a known ball that looked for the nearest adversarial images, or `None`."""
        distances = self.table.distances if self.table else {}
        return next((name for name in distances if ball(self.parameters.get(name, {}))), None)

    def class_name(self, label):
        """Returns the name of a class; its number if classes have no names or, as after NaN, there is no such class."""
        return self.table.class_name(label) if self.table and label >= 0 else str(label)

    def series(self, column):
        """Returns the (epoch, value) pairs of a column of history.csv, without empty cells."""
        pairs = ((row.get("epoch"), row.get(column)) for row in self.rows)
        return [pair for pair in pairs if None not in pair]


def ball(entry):
    """Returns the (norm, epsilon) of the ball in the entry of a file or of an attack, or `None`."""
    if isinstance(entry, str):
        found = BALL.search(entry)
        return found and (found[1], float(found[2]))
    threat = entry.get("threat")
    return (threat["norm"], float(threat["epsilon"])) if threat else None


def attacks(names):
    """Returns the names that are attacks: not natural images, stages or the worst case."""
    return [name for name in names if name not in ("natural", WORST_CASE) and "/" not in name]


def flag(lines, name):
    """Returns the value of a flag in the lines of a flags.cfg, or `None`."""
    return next((line.partition("=")[2] for line in lines if line.startswith(f"--{name}=")), None)
