"""The main results of each run."""

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import differences, frame
from keras_mart.evaluation.table import WORST_CASE

LEAD = (
    "Accuracy on natural images, and on images that attacks may change within the ball. The worst case counts an "
    "example only if it is classified correctly without an attack and under every attack."
)


def summary(subjects):
    """Returns the section with a card per run: two figures and a sentence."""
    measured = [subject for subject in subjects if subject.hardest]
    lines = [frame.missing(subject, "The accuracy", "evaluate") for subject in subjects if not subject.hardest]
    shown = frame.cards(measured, _headline) if measured else None
    return frame.section("summary", "Summary", LEAD, differences.notes(subjects), shown, lines)


def _headline(subject):
    names = ["natural", subject.hardest]
    figures = [_figure(subject, name) for name in names if name in subject.accuracy()]
    return [tag("div", figures, class_="figures"), tag("p", *_sentence(subject), class_="headline")]


def _figure(subject, name):
    accuracy = subject.accuracy()[name]
    label = formatting.attack(name) if name in formatting.NAMES else f"under {name}"
    strip = frame.strip(subject, accuracy, subject.interval(name))
    return tag("div", tag("span", label), tag("strong", formatting.percent(accuracy)), strip)


def _sentence(subject):
    accuracy, name = subject.accuracy(), subject.hardest
    yield tag("b", subject.title)
    yield " classifies "
    if "natural" in accuracy:
        precision = subject.record.get("precision")
        within = f" in {precision}" if precision else ""
        yield f"{formatting.percent(accuracy['natural'])} of the {subject.examples:,} test images "
        yield f"correctly{within}, and "
    yield f"{formatting.percent(accuracy[name])} (95% interval {formatting.interval(subject.interval(name))}) "
    if name != WORST_CASE:
        yield f"under {name}, the strongest attack measured; the worst case over all attacks was not recorded."
    elif len(subject.attacks) == 1:
        yield f"in the worst case; {subject.attacks[0]} is the only attack measured."
    else:
        yield f"in the worst case over {len(subject.attacks)} attacks."
