"""The accuracy per class."""

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import frame
from keras_mart.evaluation.table import WORST_CASE, wilson

LEAD = (
    "Accuracy of the best checkpoint on the examples of each class: in the worst case, with its 95% interval, and on "
    "natural images. The mean over all classes can hide a class that is not robust."
)
# The largest number of classes shown.
SHOWN = 20
FEWER = "Shown are the {} classes with the lowest worst-case accuracy, of {}."


def classes(subjects):
    """Returns the section with a sentence on each run's worst class and a table."""
    measured = {subject: subject.table.class_accuracy for subject in subjects if subject.table}
    absent = [frame.missing(each, "The predictions", "evaluate") for each in subjects if each not in measured]
    shown = [[_worst(each) for each in measured], _table(measured)] if measured else None
    return frame.section("classes", "Accuracy per class", LEAD, shown, absent)


def _worst(subject):
    name, found = subject.table.worst_class, subject.table.class_accuracy
    worst, natural = (formatting.percent(found[name][which]) for which in (WORST_CASE, "natural"))
    text = f" is least robust on {name} (of {len(found)} classes): {worst} in the worst case, {natural} natural."
    return tag("p", tag("b", subject.title), text, class_="footnote")


def _table(measured):
    names = list(dict.fromkeys(name for found in measured.values() for name in found))
    shown = names if len(names) <= SHOWN else sorted(names, key=lambda name: _lowest(name, measured))[:SHOWN]
    rows = [(None, [name, *(_cell(each, found.get(name)) for each, found in measured.items())]) for name in shown]
    table = frame.table("Accuracy per class", ["class", *map(frame.title, measured)], rows)
    fewer = tag("p", FEWER.format(SHOWN, len(names)), class_="footnote") if len(names) > SHOWN else None
    return [table, fewer]


def _lowest(name, measured):
    return min((found[name][WORST_CASE], found[name]["natural"]) for found in measured.values() if name in found)


def _cell(subject, found):
    if found is None:
        return frame.NOT_MEASURED
    accuracy, interval = found[WORST_CASE], wilson(found[WORST_CASE], found["examples"])
    figures = [
        tag("strong", formatting.percent(accuracy)),
        tag("small", formatting.interval(interval)),
        tag("small", f"natural {formatting.percent(found['natural'])}"),
    ]
    return [tag("div", figures, class_="inline"), frame.strip(subject, accuracy, interval)]
