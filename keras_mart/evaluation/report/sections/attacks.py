"""The accuracy under each attack."""

import itertools

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import costs, differences, frame
from keras_mart.evaluation.table import WORST_CASE

LEAD = (
    'Accuracy of the best checkpoint on the test set, with its 95% interval; "last" is the accuracy of the last '
    "checkpoint. An indented row is a stage of the attack above it and gives the accuracy after that stage."
)
EARLY = (
    "Each attack on {} ran only on the examples classified correctly under all attacks before it; its accuracy counts "
    "those attacks too."
)
SAME = "The last checkpoint of {} is its best."


def attacks(subjects):
    """Returns the section with the accuracies, costs and parameters of the attacks."""
    measured = [subject for subject in subjects if subject.accuracy()]
    absent = [frame.missing(each, "The accuracy", "evaluate") for each in subjects if each not in measured]
    content = [differences.notes(measured), _tables(measured)] if measured else []
    return frame.section("attacks", "Accuracy under attacks", LEAD, content, absent)


def _tables(subjects):
    names = _names(subjects)
    rows = [(frame.kind(name), [formatting.attack(name), *(_cell(each, name) for each in subjects)]) for name in names]
    accuracies = frame.table("Accuracy under attacks", ["attack", *map(frame.title, subjects)], rows)
    return [accuracies, _footnotes(subjects), costs.costs(names, subjects), costs.parameters(names, subjects)]


def _names(subjects):
    """Returns the rows: natural, the attacks in their order, each followed by its stages, and the worst case."""
    found = list(dict.fromkeys(name for subject in subjects for name in subject.accuracy()))
    attacks = dict.fromkeys(name.partition("/")[0] for name in found if name not in formatting.NAMES)
    names = [[attack, *(name for name in found if name.startswith(f"{attack}/"))] for attack in attacks]
    return ["natural", *itertools.chain(*names), *([WORST_CASE] if WORST_CASE in found else [])]


def _cell(subject, name):
    if name not in subject.accuracy():
        return frame.NOT_MEASURED
    accuracy, interval = subject.accuracy()[name], subject.interval(name)
    last = subject.accuracy("last").get(name)
    figures = [
        tag("strong", formatting.percent(accuracy)),
        tag("small", formatting.interval(interval)),
        None if subject.one_checkpoint or last is None else tag("small", f"last {formatting.percent(last)}"),
    ]
    return [tag("div", figures, class_="inline"), frame.strip(subject, accuracy, interval)]


def _footnotes(subjects):
    early = [each.title for each in subjects if each.stopped_early]
    same = [each.title for each in subjects if each.one_checkpoint]
    return [
        tag("p", text.format(formatting.listing(titles)), class_="footnote")
        for text, titles in ((EARLY, early), (SAME, same))
        if titles
    ]
