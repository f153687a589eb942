"""Accuracy against the size of the perturbation."""

import math

from keras_mart.evaluation.report import words
from keras_mart.evaluation.report.charts import lines, marks, svg
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import falls, frame
from keras_mart.evaluation.table import wilson

LEAD = (
    "How accuracy falls as the ball grows, with 95% intervals. It must reach 0 in a large enough ball: a curve that "
    "stays up shows an attack that fails, not a network that holds."
)
# About so many ticks on the axis.
TICKS = 6


def epsilon(subjects):
    """A chart and its figures, for each norm."""
    found = falls.falls(subjects)
    measured = [each.subject for each in found]
    absent = [frame.missing(each, "The curve", "report") for each in subjects if each not in measured]
    norms = dict.fromkeys(each.norm for each in found)
    shown = [_figure(norm, [each for each in found if each.norm == norm]) for norm in norms]
    return frame.section("epsilon", "Accuracy against epsilon", LEAD, shown, absent)


def _figure(norm, found):
    sizes, end = sorted({size for each in found for size in each.sizes}), max(each.end for each in found)
    legend = frame.legend(*((marks.swatch(each.subject.number), each.subject.title) for each in found))
    chart = svg.both(lambda width: _chart(norm, found, sizes, end, width))
    return [frame.figure(_caption(found, sizes, end), legend, chart), _table(found, sizes)]


def _caption(found, sizes, end):
    bases = words.grouped((each.subject.title, each.basis) for each in found)
    several = len(bases) > 1
    said = "; ".join((f"of {titles} " if several else "") + basis for basis, titles in bases.items())
    further = f" The table goes on to {words.epsilon(sizes[-1])}." if sizes[-1] > end else ""
    return f"Accuracy {said}. Bands are 95% intervals.{further}"


def _chart(norm, found, sizes, end, width):
    x_axis = axis_of(norm, [*(size for size in sizes if size <= end), end])
    y_axis = lines.Axis("accuracy", 0, 1, [(share / 4, f"{share / 4:.0%}") for share in range(5)])
    label = "Accuracy against epsilon. " + " ".join(
        f"{each.subject.title}: "
        + ", ".join(f"{share:.0%} at {words.epsilon(size)}" for size, share in each.at(sizes).items())
        + "."
        for each in found
    )
    height = 320 if width == svg.WIDE else 230
    drawn = [_line(each, sizes, x_axis.high) for each in found]
    ruled = [(size, text) for size, text in _marks(found) if size <= x_axis.high]
    return lines.line_chart(label, drawn, x_axis, y_axis, width=width, height=height, marks=ruled)


def axis_of(norm, sizes):
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


def _line(fall, sizes, end):
    points = fall.drawn(end)
    marked = [point for point in fall.at(sizes).items() if point[0] <= end]
    band = tuple((size, *wilson(share, fall.examples)) for size, share in points)
    number = fall.subject.number
    return lines.Line(points, marks.colour(number), band=band, shape=number, marked=marked)


def _marks(found):
    """(epsilon, text) of the sizes that the runs were trained and evaluated at."""
    roles = {}
    for each in found:
        threat = each.subject.threat
        evaluated = threat[1] if threat and threat[0] == each.norm else None
        for size, role in ((each.subject.trained_epsilon, "trained"), (evaluated, "evaluated")):
            if size:
                roles.setdefault(words.epsilon(size), {"size": size})[role] = True
    return [(each.pop("size"), f"{words.listing(each)} at {text}") for text, each in roles.items()]


def _table(found, sizes):
    rows = []
    for each in found:
        shares = each.at(sizes)
        cells = [words.percent(shares[size], 1) if size in shares else "" for size in sizes]
        rows.append((None, [frame.title(each.subject), *cells]))
    table = frame.table("Accuracy against epsilon", ["epsilon", *map(words.epsilon, sizes)], rows)
    return tag("div", table, class_="short")
