"""The accuracy under each attack."""

import itertools

from keras_mart.evaluation.report import words
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import costs, differences, frame
from keras_mart.evaluation.table import WORST_CASE

LEAD = (
    "The best checkpoint's accuracy on the test set, with its 95% interval; last, the last checkpoint's. An indented "
    "row is a stage of the attack above it and says how things stood after it."
)
EARLY = "Each attack of {} ran only on what was classified correctly under all before it, and is counted with them."
SAME = "The last checkpoint of {} is its best."


def attacks(subjects):
    """A table of accuracies, what the attacks cost, and their parameters."""
    measured = [subject for subject in subjects if subject.accuracy()]
    absent = [frame.missing(each, "The accuracy", "evaluate") for each in subjects if each not in measured]
    content = [differences.notes(measured), _tables(measured)] if measured else []
    return frame.section("attacks", "Accuracy under attacks", LEAD, content, absent)


def _tables(subjects):
    names = _names(subjects)
    rows = [(frame.kind(name), [words.attack(name), *(_cell(each, name) for each in subjects)]) for name in names]
    accuracies = frame.table("Accuracy under attacks", ["attack", *map(frame.title, subjects)], rows)
    return [accuracies, _footnotes(subjects), costs.costs(names, subjects), costs.parameters(names, subjects)]


def _names(subjects):
    """Natural, the attacks in the order met, each with its stages behind it, the worst case."""
    met = list(dict.fromkeys(name for subject in subjects for name in subject.accuracy()))
    attacks = dict.fromkeys(name.partition("/")[0] for name in met if name not in words.NAMES)
    names = [[attack, *(name for name in met if name.startswith(f"{attack}/"))] for attack in attacks]
    return ["natural", *itertools.chain(*names), *([WORST_CASE] if WORST_CASE in met else [])]


def _cell(subject, name):
    if name not in subject.accuracy():
        return frame.NOT_MEASURED
    accuracy, interval = subject.accuracy()[name], subject.interval(name)
    last = subject.accuracy("last").get(name)
    figures = [
        tag("strong", words.percent(accuracy)),
        tag("small", words.interval(interval)),
        None if subject.one_checkpoint or last is None else tag("small", f"last {words.percent(last)}"),
    ]
    return [tag("div", figures, class_="inline"), frame.strip(subject, accuracy, interval)]


def _footnotes(subjects):
    early = [each.title for each in subjects if each.stopped_early]
    same = [each.title for each in subjects if each.one_checkpoint]
    return [
        tag("p", text.format(words.listing(titles)), class_="footnote")
        for text, titles in ((EARLY, early), (SAME, same))
        if titles
    ]
