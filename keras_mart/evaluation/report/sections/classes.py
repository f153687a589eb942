"""The accuracy of each class."""

from keras_mart.evaluation.report import words
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import frame
from keras_mart.evaluation.table import WORST_CASE, wilson

LEAD = (
    "The best checkpoint's accuracy on the examples of each class, in the worst case, with its 95% interval, and "
    "natural. A mean over classes can hide one that does not hold."
)
# So many classes are shown.
SHOWN = 20
FEWER = "The {} classes with the lowest accuracy in the worst case, of {}."


def classes(subjects):
    """The worst class of each run in words, and a table."""
    measured = {subject: subject.table.class_accuracy for subject in subjects if subject.table}
    absent = [frame.missing(each, "The predictions", "evaluate") for each in subjects if each not in measured]
    shown = [[_worst(each) for each in measured], _table(measured)] if measured else None
    return frame.section("classes", "Accuracy of each class", LEAD, shown, absent)


def _worst(subject):
    name, found = subject.table.worst_class, subject.table.class_accuracy
    worst, natural = (words.percent(found[name][which]) for which in (WORST_CASE, "natural"))
    said = f" does worst on {name}, of {len(found)} classes: {worst} in the worst case, {natural} natural."
    return tag("p", tag("b", subject.title), said, class_="footnote")


def _table(measured):
    names = list(dict.fromkeys(name for found in measured.values() for name in found))
    shown = names if len(names) <= SHOWN else sorted(names, key=lambda name: _lowest(name, measured))[:SHOWN]
    rows = [(None, [name, *(_cell(each, found.get(name)) for each, found in measured.items())]) for name in shown]
    table = frame.table("Accuracy of each class", ["class", *map(frame.title, measured)], rows)
    fewer = tag("p", FEWER.format(SHOWN, len(names)), class_="footnote") if len(names) > SHOWN else None
    return [table, fewer]


def _lowest(name, measured):
    return min((found[name][WORST_CASE], found[name]["natural"]) for found in measured.values() if name in found)


def _cell(subject, found):
    if found is None:
        return frame.NOT_MEASURED
    accuracy, interval = found[WORST_CASE], wilson(found[WORST_CASE], found["examples"])
    figures = [
        tag("strong", words.percent(accuracy)),
        tag("small", words.interval(interval)),
        tag("small", f"natural {words.percent(found['natural'])}"),
    ]
    return [tag("div", figures, class_="inline"), frame.strip(subject, accuracy, interval)]
