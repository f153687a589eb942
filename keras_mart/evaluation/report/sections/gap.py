"""What PGD-20 leaves and AutoAttack takes."""

from keras_mart.evaluation.presets import TRANSFER
from keras_mart.evaluation.report import words
from keras_mart.evaluation.report.charts import dumbbell, marks, svg
from keras_mart.evaluation.report.charts.dumbbell import Pair
from keras_mart.evaluation.report.sections import frame

WEAK, STRONG = "pgd20", "autoattack"
LEAD = (
    "AutoAttack tries several losses, adapts its steps, and ends with an attack that needs no gradient. A large gap "
    "means that PGD-20 flatters: it fails to find adversarial examples that are there. Believe the lower figure."
)


def gap(subjects):
    """A row for each run."""
    measured = [each for each in subjects if {WEAK, STRONG} <= set(each.accuracy()) and not each.stopped_early]
    absent = [_missing(subject) for subject in subjects if subject not in measured]
    shown = _figure([_pair(subject) for subject in measured]) if measured else None
    return frame.section("gap", "The gap between PGD-20 and AutoAttack", LEAD, shown, absent)


def _missing(subject):
    """With the attacks measured already, since an evaluation replaces the one before; transfer needs its source."""
    own = [name for name in subject.attacks if not name.startswith(TRANSFER)]
    attacks = ",".join(dict.fromkeys([*own, WEAK, STRONG]))
    absent = [name for name, key in (("PGD-20", WEAK), ("AutoAttack", STRONG)) if key not in subject.accuracy()]
    what = " and ".join(absent) or "PGD-20 and AutoAttack, each by itself,"
    return frame.missing(subject, what, "evaluate", f"--attacks={attacks}")


def _pair(subject):
    return Pair(subject.title, subject.number, subject.accuracy()[WEAK], subject.accuracy()[STRONG])


def _figure(pairs):
    gaps = [f"{pair.title} loses {100 * (pair.open - pair.filled):.2f} points" for pair in pairs]
    label = "Accuracy under PGD-20 and AutoAttack. " + "; ".join(
        f"{pair.title}: {words.percent(pair.open)} and {words.percent(pair.filled)}" for pair in pairs
    )
    legend = frame.legend((marks.end("ring"), "PGD-20"), (marks.end("dot"), "AutoAttack"))
    chart = svg.both(lambda width: dumbbell.dumbbell(label, pairs, "accuracy", width=width))
    return frame.figure(f"From PGD-20 to AutoAttack {words.listing(gaps)}.", legend, chart)
