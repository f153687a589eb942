"""How the accuracy of a run falls as the ball grows: measured at some epsilons, or known at each from distances."""

import dataclasses

import numpy as np

from keras_mart.evaluation.report.sections import differences
from keras_mart.evaluation.report.subject import Subject, ball

# What is known at each epsilon is drawn at so many, and its table has these multiples of the evaluated one.
DRAWN = 200
MULTIPLES = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4)
# The last size measured reaches every image. One more than so many times as large as the one before stands in the
# table alone: drawn, it would squeeze the others together.
LEAP = 1.5
# Sizes that differ by less are one.
DIGITS = 9


@dataclasses.dataclass(frozen=True)
class Measured:
    """Accuracy at some epsilons, as the diagnosis measured it."""

    subject: Subject

    @property
    def norm(self):
        """Of the ball, or `None`."""
        ball_ = self.subject.diagnosed or self.subject.threat
        return ball_ and ball_[0]

    @property
    def shares(self):
        """Epsilon to accuracy."""
        curve = self.subject.diagnosis["curve"]
        sizes = (round(size, DIGITS) for size in curve["epsilon"])
        return dict(sorted(zip(sizes, curve["accuracy"], strict=False)))

    @property
    def sizes(self):
        """The epsilons of the table."""
        return list(self.shares)

    @property
    def end(self):
        """The largest epsilon drawn."""
        *below, last = self.sizes
        return below[-1] if below and 0 < LEAP * below[-1] < last else last

    @property
    def examples(self):
        """How many were attacked."""
        return self.subject.diagnosis["curve"].get("examples") or self.subject.diagnosis["examples"]

    @property
    def basis(self):
        """What it was measured on and how."""
        attack = self.subject.diagnosis["curve"].get("attack")
        under = f" under {attack}, at each epsilon" if attack else ""
        return f"on {self.examples:,} test examples{under}"

    def at(self, sizes):
        """Epsilon to accuracy, of those sizes where it is known."""
        return {size: self.shares[size] for size in sizes if size in self.shares}

    def drawn(self, end):
        """(epsilon, accuracy) pairs of the line."""
        return [point for point in self.shares.items() if point[0] <= end]


@dataclasses.dataclass(frozen=True)
class Known:
    """Accuracy at each epsilon, from the distances of the nearest adversarial images."""

    subject: Subject

    @property
    def _ball(self):
        return ball(self.subject.parameters[self.subject.nearest])

    @property
    def norm(self):
        """Of the ball."""
        return self._ball[0]

    @property
    def sizes(self):
        """The epsilons of the table."""
        return [round(multiple * self._ball[1], DIGITS) for multiple in MULTIPLES]

    @property
    def end(self):
        """The largest epsilon drawn: where all are fooled that ever are, but twice the evaluated one at least."""
        return max(2 * self._ball[1], float(self.subject.table.curve(self.subject.nearest)[0][-1]))

    @property
    def examples(self):
        """How many were attacked."""
        return self.subject.table.examples

    @property
    def basis(self):
        """What it was measured on and how."""
        said = differences.parameters(self.subject)[self.subject.nearest]
        return (
            f"on {self.examples:,} test examples, from the distances of the nearest adversarial images found ({said})"
        )

    def at(self, sizes):
        """Epsilon to accuracy, at all sizes."""
        return dict(zip(sizes, self.subject.table.curve(self.subject.nearest, sizes)[1].tolist(), strict=True))

    def drawn(self, end):
        """(epsilon, accuracy) pairs of the line."""
        return list(self.at(np.linspace(0, end, DRAWN).tolist()).items())


def falls(subjects):
    """Each subject's `Known`, where it has distances, or `Measured`; without those that have neither."""
    kinds = ((each, Known if each.nearest else Measured) for each in subjects)
    return [kind(each) for each, kind in kinds if each.nearest or (each.diagnosis.get("curve") or {}).get("epsilon")]
