"""A run's accuracy against epsilon: measured at some epsilons, or computed at every epsilon from distances."""

import dataclasses

import numpy as np

from keras_mart.evaluation.report.sections import differences
from keras_mart.evaluation.report.subject import Subject, ball

# A curve from distances is drawn at this number of points; its table has these multiples of the evaluated epsilon.
DRAWN = 200
MULTIPLES = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4)
# The ball of the last measured epsilon contains every image. If it is more than this factor larger than the one before,
# it is only in the table: drawn, it would squeeze the others together.
LARGEST_GAP = 1.5
# Epsilons that agree to this number of digits count as equal.
DIGITS = 9


@dataclasses.dataclass(frozen=True)
class Measured:
    """Accuracy at some epsilons, measured by the diagnosis."""

    subject: Subject

    @property
    def norm(self):
        """Norm of the ball, or `None`."""
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
        return below[-1] if below and 0 < LARGEST_GAP * below[-1] < last else last

    @property
    def examples(self):
        """Number of examples that were attacked."""
        return self.subject.diagnosis["curve"].get("examples") or self.subject.diagnosis["examples"]

    @property
    def basis(self):
        """Describes the examples and the attack, as text."""
        attack = self.subject.diagnosis["curve"].get("attack")
        under = f" under {attack}, at each epsilon" if attack else ""
        return f"on {self.examples:,} test examples{under}"

    def at(self, sizes):
        """Returns a dictionary from those of the epsilons that were measured to accuracies."""
        return {size: self.shares[size] for size in sizes if size in self.shares}

    def drawn(self, end):
        """Returns the (epsilon, accuracy) pairs of the line."""
        return [point for point in self.shares.items() if point[0] <= end]


@dataclasses.dataclass(frozen=True)
class FromDistances:
    """Accuracy at every epsilon, from the distances of the nearest adversarial images."""

    subject: Subject

    @property
    def _ball(self):
        return ball(self.subject.parameters[self.subject.nearest])

    @property
    def norm(self):
        """Norm of the ball."""
        return self._ball[0]

    @property
    def sizes(self):
        """The epsilons of the table."""
        return [round(multiple * self._ball[1], DIGITS) for multiple in MULTIPLES]

    @property
    def end(self):
        """The largest epsilon drawn: the largest finite distance, but at least twice the evaluated epsilon."""
        return max(2 * self._ball[1], float(self.subject.table.curve(self.subject.nearest)[0][-1]))

    @property
    def examples(self):
        """Number of examples that were attacked."""
        return self.subject.table.examples

    @property
    def basis(self):
        """Describes the examples and the attack, as text."""
        attack = differences.parameters(self.subject)[self.subject.nearest]
        return (
            f"on {self.examples:,} test examples, from the distances of the nearest adversarial images found ({attack})"
        )

    def at(self, sizes):
        """Returns a dictionary from the epsilons to accuracies."""
        return dict(zip(sizes, self.subject.table.curve(self.subject.nearest, sizes)[1].tolist(), strict=True))

    def drawn(self, end):
        """Returns the (epsilon, accuracy) pairs of the line."""
        return list(self.at(np.linspace(0, end, DRAWN).tolist()).items())


def epsilon_curves(subjects):
    """Returns a curve for each subject that has distances (`FromDistances`) or a measured curve (`Measured`)."""
    kinds = ((each, FromDistances if each.nearest else Measured) for each in subjects)
    return [kind(each) for each, kind in kinds if each.nearest or (each.diagnosis.get("curve") or {}).get("epsilon")]
