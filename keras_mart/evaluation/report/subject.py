"""What the report knows of a run."""

import dataclasses
import fractions
import re

from keras_mart.evaluation.run import Run
from keras_mart.evaluation.table import WORST_CASE, Table, wilson

# An attack's repr says which ball it searched; files that name no threat have only this.
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
    def threat(self):
        """(norm, epsilon) of the ball it was judged in, or `None`."""
        named = _ball(self.evaluation) or self.diagnosed
        if named:
            return named
        balls = filter(None, map(BALL.search, self.evaluation.get("attacks", {}).values()))
        return next(((ball[1], float(ball[2])) for ball in balls), None)

    @property
    def diagnosed(self):
        """(norm, epsilon) of the ball it was checked for false robustness in, or `None`."""
        return _ball(self.diagnosis)

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

    def series(self, column):
        """(epoch, value) pairs of a column of history.csv, without empty cells."""
        pairs = ((row.get("epoch"), row.get(column)) for row in self.rows)
        return [pair for pair in pairs if None not in pair]


def _ball(measured):
    """(norm, epsilon) of the ball that a file names, or `None`."""
    threat = measured.get("threat")
    return (threat["norm"], float(threat["epsilon"])) if threat else None


def attacks(names):
    """Those that are attacks of their own: not natural images, no stage, not the worst case."""
    return [name for name in names if name not in ("natural", WORST_CASE) and "/" not in name]


def flag(lines, name):
    """A flag's value in the lines of a flags.cfg, or `None`."""
    return next((line.partition("=")[2] for line in lines if line.startswith(f"--{name}=")), None)
