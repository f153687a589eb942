"""The gap between the accuracies under PGD-20 and AutoAttack."""

from keras_mart.evaluation.presets import TRANSFER
from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.charts import dumbbell, marks, svg
from keras_mart.evaluation.report.charts.dumbbell import Pair
from keras_mart.evaluation.report.sections import frame

WEAK, STRONG = "pgd20", "autoattack"
LEAD = (
    "AutoAttack uses several losses, adapts its step sizes, and ends with an attack that needs no gradients. A large "
    "gap means that PGD-20 overestimates robustness: it misses adversarial examples that exist. Trust the lower figure."
)


def gap(subjects):
    """Returns the section with a row per run."""
    measured = [each for each in subjects if {WEAK, STRONG} <= set(each.accuracy()) and not each.stopped_early]
    absent = [_missing(subject) for subject in subjects if subject not in measured]
    shown = _figure([_pair(subject) for subject in measured]) if measured else None
    return frame.section("gap", "The gap between PGD-20 and AutoAttack", LEAD, shown, absent)


def _missing(subject):
    """Returns the note on a missing attack; its command repeats the others, since an evaluation replaces the last.

    Transfer attacks are left out, because they need --source.
    """
    own = [name for name in subject.attacks if not name.startswith(TRANSFER)]
    attacks = ",".join(dict.fromkeys([*own, WEAK, STRONG]))
    absent = [name for name, key in (("PGD-20", WEAK), ("AutoAttack", STRONG)) if key not in subject.accuracy()]
    what = " and ".join(absent) or "PGD-20 and AutoAttack, each on all examples,"
    return frame.missing(subject, what, "evaluate", f"--attacks={attacks}")


def _pair(subject):
    return Pair(subject.title, subject.number, subject.accuracy()[WEAK], subject.accuracy()[STRONG])


def _figure(pairs):
    gaps = [f"{pair.title} loses {100 * (pair.open - pair.filled):.2f} points" for pair in pairs]
    label = "Accuracy under PGD-20 and AutoAttack. " + "; ".join(
        f"{pair.title}: {formatting.percent(pair.open)} and {formatting.percent(pair.filled)}" for pair in pairs
    )
    legend = frame.legend((marks.end("ring"), "PGD-20"), (marks.end("dot"), "AutoAttack"))
    chart = svg.both(lambda width: dumbbell.dumbbell(label, pairs, "accuracy", width=width))
    return frame.figure(f"From PGD-20 to AutoAttack, {formatting.listing(gaps)}.", legend, chart)
