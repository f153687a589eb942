"""Accuracy against the size of the perturbation."""

import math

from keras_mart.evaluation.report import words
from keras_mart.evaluation.report.charts import lines, marks, svg
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import frame
from keras_mart.evaluation.table import wilson

LEAD = (
    "How accuracy falls as the ball grows, with 95% intervals. It must reach 0 in a large enough ball: a curve that "
    "stays up shows an attack that fails, not a network that holds."
)
# The last size of a curve reaches every image. One more than so many times as large as the one before stands in the
# table alone: drawn, it would squeeze the others together.
LEAP = 1.5
# About so many ticks on the axis.
TICKS = 6


def epsilon(subjects):
    """A chart and its figures, for each norm."""
    measured = [subject for subject in subjects if _points(subject)]
    absent = [frame.missing(each, "The curve", "report") for each in subjects if each not in measured]
    norms = dict.fromkeys(_norm(subject) for subject in measured)
    shown = [_figure(norm, [each for each in measured if _norm(each) == norm]) for norm in norms]
    return frame.section("epsilon", "Accuracy against epsilon", LEAD, shown, absent)


def _norm(subject):
    ball = subject.diagnosed or subject.threat
    return ball[0] if ball else None


def _points(subject):
    curve = subject.diagnosis.get("curve") or {}
    return list(zip(curve.get("epsilon", ()), curve.get("accuracy", ()), strict=False))


def _sizes(subjects):
    return sorted({size for subject in subjects for size, _ in _points(subject)})


def _end(subjects):
    """The largest size drawn."""
    *below, last = _sizes(subjects)
    return below[-1] if below and 0 < LEAP * below[-1] < last else last


def _figure(norm, subjects):
    legend = frame.legend(*((marks.swatch(each.number), each.title) for each in subjects))
    return [
        frame.figure(_caption(norm, subjects), legend, svg.both(lambda width: _chart(norm, subjects, width))),
        _table(subjects),
    ]


def _caption(norm, subjects):
    examples = words.listing(dict.fromkeys(f"{_examples(each):,}" for each in subjects))
    attacks = words.listing(dict.fromkeys(filter(None, (each.diagnosis["curve"].get("attack") for each in subjects))))
    under = f" under {attacks}, at each epsilon" if attacks else ""
    beyond = [size for size in _sizes(subjects) if size > _end(subjects)]
    further = f" The table goes on to {words.epsilon(beyond[-1])}." if beyond else ""
    return f"Accuracy on {examples} test examples{under}. Bands are 95% intervals.{further}"


def _examples(subject):
    return subject.diagnosis["curve"].get("examples") or subject.diagnosis["examples"]


def _chart(norm, subjects, width):
    x_axis = _axis(norm, [size for size in _sizes(subjects) if size <= _end(subjects)])
    y_axis = lines.Axis("accuracy", 0, 1, [(share / 4, f"{share / 4:.0%}") for share in range(5)])
    label = "Accuracy against epsilon. " + " ".join(
        f"{each.title}: " + ", ".join(f"{share:.0%} at {words.epsilon(size)}" for size, share in _points(each)) + "."
        for each in subjects
    )
    height = 320 if width == svg.WIDE else 230
    drawn = [_line(subject, x_axis.high) for subject in subjects]
    sizes = [(size, text) for size, text in _marks(subjects) if size <= x_axis.high]
    return lines.line_chart(label, drawn, x_axis, y_axis, width=width, height=height, marks=sizes)


def _axis(norm, sizes):
    high = max(sizes) or 1.0
    if any(map(words.in_255ths, sizes)):
        ticks = [(tick / 255, f"{tick}/255" if tick else "0") for tick in _powers_of_two(high * 255)]
    else:
        ticks = [(tick, f"{tick:g}") for tick in svg.ticks(0, high, TICKS)]
    name = f" in {words.NORMS.get(norm, norm)}" if norm else ""
    return lines.Axis(f"epsilon{name} (image values lie in 0 to 1)", 0, high, ticks)


def _powers_of_two(high):
    """Ticks up to `high` with a step as papers use them: 1, 2, 4, 8."""
    step = 2 ** max(0, math.ceil(math.log2(high / TICKS)))
    return range(0, math.floor(high + 1e-6) + 1, step)


def _line(subject, end):
    points = sorted(point for point in _points(subject) if point[0] <= end)
    band = tuple((size, *wilson(share, _examples(subject))) for size, share in points)
    return lines.Line(points, marks.colour(subject.number), band=band, shape=subject.number)


def _marks(subjects):
    """(epsilon, text) of the sizes that the runs were trained and evaluated at."""
    roles = {}
    for subject in subjects:
        evaluated = subject.threat[1] if subject.threat and subject.threat[0] == _norm(subject) else None
        for size, role in ((subject.trained_epsilon, "trained"), (evaluated, "evaluated")):
            if size:
                roles.setdefault(words.epsilon(size), {"size": size})[role] = True
    return [(each.pop("size"), f"{words.listing(each)} at {text}") for text, each in roles.items()]


def _table(subjects):
    sizes = _sizes(subjects)
    rows = []
    for subject in subjects:
        shares = dict(_points(subject))
        cells = [words.percent(shares[size], 1) if size in shares else "" for size in sizes]
        rows.append((None, [frame.title(subject), *cells]))
    table = frame.table("Accuracy against epsilon", ["epsilon", *map(words.epsilon, sizes)], rows)
    return tag("div", table, class_="short")
