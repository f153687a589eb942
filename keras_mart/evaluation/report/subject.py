"""What the report knows of a run."""

import dataclasses
import fractions
import re

from keras_mart.evaluation.run import Run
from keras_mart.evaluation.table import WORST_CASE, Table, wilson

# Older files hold an attack's repr, which says which ball it searched.
BALL = re.compile(r"threat=(\w+)\(epsilon=([^)]+)\)")


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A run that the report is about.

    Attributes:
        title: what the report calls it.
        number: its place among the runs, from 0: it gives the colour.
        run: its `Run`.
        flags: the lines of flags.cfg.
        rows: the rows of history.csv, column to number; `None` where a cell is empty.
        evaluation, diagnosis: what the JSON files say; empty where they are missing.
        table: the best checkpoint's predictions, a `Table` or `None`.
        gallery: name to array, or `None`.
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
        """What was evaluated: evaluation.json says it of each checkpoint, in older files at its top."""
        return self.evaluation | self.checkpoint("best")

    @property
    def parameters(self):
        """Name of each attack and stage to what it is: a dictionary, in older files its repr."""
        found = {}
        for name, said in self.record.get("attacks", {}).items():
            stages = said.get("stages", {}) if isinstance(said, dict) else {}
            found |= {name: said, **{f"{name}/{stage}": of_stage for stage, of_stage in stages.items()}}
        return found

    @property
    def threat(self):
        """(norm, epsilon) of the ball it was judged in, or `None`."""
        return next(filter(None, map(ball, [self.record, self.diagnosis, *self.parameters.values()])), None)

    @property
    def diagnosed(self):
        """(norm, epsilon) of the ball it was checked for false robustness in, or `None`."""
        return ball(self.diagnosis)

    @property
    def trained_epsilon(self):
        """--epsilon, or `None` where it was left at its default."""
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
        """Whether the last checkpoint is the best."""
        return self.checkpoint("best") == self.checkpoint("last")

    @property
    def stopped_early(self):
        """Whether a row says what all attacks up to it left, not what its own did."""
        return self.checkpoint("best").get("stop_early", False)

    def checkpoint(self, which):
        """The summary of the "best" or the "last" checkpoint's table; empty where it is missing."""
        return self.evaluation.get(which) or {}

    def accuracy(self, which="best"):
        """Name to accuracy."""
        return self.checkpoint(which).get("accuracy", {})

    def interval(self, name):
        """The 95% interval of the best checkpoint's accuracy, as written or computed."""
        return self.checkpoint("best").get("interval", {}).get(name) or wilson(self.accuracy()[name], self.examples)

    @property
    def hardest(self):
        """The name of the lowest figure: the worst case, the strongest attack where that is missing, or `None`."""
        if WORST_CASE in self.accuracy():
            return WORST_CASE
        return min(self.attacks, key=self.accuracy().get, default=None)

    @property
    def attacks(self):
        """The names of the attacks that the best checkpoint was judged under, without stages."""
        return attacks(self.accuracy())

    @property
    def nearest(self):
        """The name of an attack that looked for the nearest adversarial images, in a known ball, or `None`."""
        distances = self.table.distances if self.table else {}
        return next((name for name in distances if ball(self.parameters.get(name, {}))), None)

    def class_name(self, label):
        """The name of a class, its number where there are no names or, as after NaN, no class."""
        return self.table.class_name(label) if self.table and label >= 0 else str(label)

    def series(self, column):
        """(epoch, value) pairs of a column of history.csv, without empty cells."""
        pairs = ((row.get("epoch"), row.get(column)) for row in self.rows)
        return [pair for pair in pairs if None not in pair]


def ball(said):
    """(norm, epsilon) of the ball that a file, or an attack in it, names, or `None`."""
    if isinstance(said, str):
        found = BALL.search(said)
        return found and (found[1], float(found[2]))
    threat = said.get("threat")
    return (threat["norm"], float(threat["epsilon"])) if threat else None


def attacks(names):
    """Those that are attacks of their own: not natural images, no stage, not the worst case."""
    return [name for name in names if name not in ("natural", WORST_CASE) and "/" not in name]


def flag(lines, name):
    """A flag's value in the lines of a flags.cfg, or `None`."""
    return next((line.partition("=")[2] for line in lines if line.startswith(f"--{name}=")), None)
