"""The confusions between classes under the strongest attack."""

import numpy as np

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.charts import heatmap, svg
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import frame
from keras_mart.evaluation.report.subject import attacks

LEAD = (
    "Predictions of the best checkpoint under the strongest attack measured. Each row shows the examples of one class; "
    "the stronger the colour of a cell, the larger its share of the row."
)
# The number of confusions listed.
LISTED = 5


def confusion(subjects):
    """Returns the section with each run's confusion matrix and most frequent confusions."""
    measured = [subject for subject in subjects if _attack(subject)]
    absent = [frame.missing(each, "The predictions", "evaluate") for each in subjects if each not in measured]
    shown = frame.cards(measured, _map) if measured else None
    return frame.section("confusion", "Confusions under attack", LEAD, shown, absent)


def _attack(subject):
    """Returns the strongest attack, "natural" if there was no attack, `None` if there are no predictions."""
    if subject.table is None:
        return None
    accuracy = subject.table.accuracy
    return min(attacks(accuracy), key=accuracy.get, default="natural")


def _map(subject):
    attack = _attack(subject)
    counts = counts_of(subject.table.labels, subject.table.predictions[attack])
    names = [subject.class_name(label) for label in range(len(counts))]
    pairs = _pairs(counts, names)
    label = f"Confusions of {subject.title} under {attack}, {len(counts)} classes. " + "; ".join(pairs)
    chart = heatmap.heatmap(label, counts, names, width=svg.NARROW)
    accuracy = formatting.percent(subject.table[attack])
    caption = f"Under {attack}: {accuracy} of {subject.table.examples:,} examples are classified correctly."
    listed = [tag("h4", "Most frequent confusions"), tag("ol", [tag("li", pair) for pair in pairs])] if pairs else None
    return [frame.figure(caption, chart), listed]


def counts_of(labels, predicted):
    """Returns the [labels, predicted classes] confusion matrix of counts."""
    classes = int(max(labels.max(), predicted.max())) + 1
    counts = np.zeros((classes, classes), "int64")
    valid = predicted >= 0  # NaN outputs predict no class
    np.add.at(counts, (labels[valid], predicted[valid]), 1)
    return counts


def _pairs(counts, names):
    wrong = counts * (1 - np.eye(len(counts), dtype="int64"))
    places = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    found = [np.unravel_index(place, wrong.shape) for place in places]
    return [
        f"{names[label]} predicted as {names[predicted]}: {counts[label, predicted]:,} of {sum(counts[label]):,} "
        f"({counts[label, predicted] / sum(counts[label]):.1%})"
        for label, predicted in found
        if wrong[label, predicted]
    ]
