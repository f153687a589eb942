"""Accuracy and loss over the epochs."""

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.charts import lines, marks, svg
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import frame
from keras_mart.evaluation.report.subject import flag

LEAD = (
    "Accuracy and loss over the epochs, on the training and validation examples. If the training accuracy rises while "
    "the adversarial validation accuracy falls, the network overfits to the attack."
)
RUN, NATURAL = "accent", "natural"
# Column of history.csv, line style, colour.
ACCURACY = (
    ("natural_accuracy", "dashed", NATURAL),
    ("val_natural_accuracy", "solid", NATURAL),
    ("adversarial_accuracy", "dashed", RUN),
    ("val_adversarial_accuracy", "solid", RUN),
)
LOSS = (("loss", "dashed", RUN), ("val_loss", "solid", RUN))
MEANING = {
    "natural_accuracy": "natural, training",
    "val_natural_accuracy": "natural, validation",
    "adversarial_accuracy": "adversarial, training",
    "val_adversarial_accuracy": "adversarial, validation",
}
HEIGHT, LOSS_HEIGHT = 190, 120


def curves(subjects):
    """Returns the section with two charts per run."""
    measured = [subject for subject in subjects if _lines(subject, ACCURACY + LOSS)]
    absent = [_missing(subject) for subject in subjects if subject not in measured]
    shown = [_legend(measured), frame.cards(measured, _charts)] if measured else None
    return frame.section("curves", "Training curves", LEAD, shown, absent)


def _missing(subject):
    if flag(subject.flags, "model"):
        return tag(
            "p",
            tag("b", subject.title),
            " was not trained by this package: there are no training curves.",
            class_="missing",
        )
    return frame.missing(subject, "The training curve", "train", f"--flagfile={subject.run.flags}", "--resume")


def _legend(subjects):
    """Returns one legend for all runs: adversarial lines have the run's colour, for several runs the text's."""
    own = marks.colour(subjects[0].number) if len(subjects) == 1 else "accent"
    classes = {NATURAL: NATURAL, RUN: own}
    present = [row for row in ACCURACY if any(subject.series(row[0]) for subject in subjects)]
    entries = [(marks.key(style, classes[colour]), MEANING[column]) for column, style, colour in present]
    return frame.legend(*entries)


def _charts(subject):
    accuracy, loss = _lines(subject, ACCURACY), _lines(subject, LOSS)
    shown = [_accuracy(subject, accuracy) if accuracy else None, _loss(subject, loss) if loss else None]
    return tag("div", shown, class_="charts")


def _lines(subject, columns):
    colours = {NATURAL: NATURAL, RUN: marks.colour(subject.number)}
    series = [(subject.series(column), colours[colour], style) for column, style, colour in columns]
    return [lines.Line(points, colour, style) for points, colour, style in series if points]


def _epochs(drawn):
    epochs = [epoch for line in drawn for epoch, _ in line.points]
    low, high = min(epochs), max(epochs)
    ticks = [(epoch, f"{epoch:g}") for epoch in svg.ticks(low, high, 6, least=1)]
    return lines.Axis("epoch", low, high if high > low else low + 1, ticks)


def _accuracy(subject, drawn):
    axis = lines.Axis("", 0, 1, [(share / 4, f"{share / 4:.0%}") for share in range(5)])
    last = ", ".join(
        f"{MEANING[column]} {formatting.percent(subject.series(column)[-1][1], 1)}"
        for column, *_ in ACCURACY
        if subject.series(column)
    )
    label = f"Accuracy of {subject.title} over the epochs. At the end: {last}."
    chart = lines.line_chart(label, drawn, _epochs(drawn), axis, width=svg.NARROW, height=HEIGHT)
    return _figure("Accuracy (% of the examples)", chart)


def _loss(subject, drawn):
    values = [value for line in drawn for _, value in line.points]
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1
    axis = lines.Axis("", low, high, [(value, f"{value:g}") for value in svg.ticks(low, high, 3)])
    label = f"Loss of {subject.title} over the epochs, {drawn[-1].points[-1][1]:.3g} at the end."
    chart = lines.line_chart(label, drawn, _epochs(drawn), axis, width=svg.NARROW, height=LOSS_HEIGHT)
    return _figure("Loss (dashed: training, solid: validation)", chart)


def _figure(caption, chart):
    """Returns a figure with its caption above, where it serves as the title of the y axis."""
    return tag("figure", tag("figcaption", caption), chart)
