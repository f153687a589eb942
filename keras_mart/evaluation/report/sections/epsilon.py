"""Accuracy against the size of the perturbation."""

import math

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.charts import lines, marks, svg
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import epsilon_curves, frame
from keras_mart.evaluation.table import wilson

LEAD = (
    "Accuracy for balls of increasing size, with 95% intervals. In a large enough ball it must reach 0: a curve that "
    "stays above 0 means that the attack fails, not that the network is robust."
)
# The approximate number of ticks on the axis.
TICKS = 6


def epsilon(subjects):
    """Returns the section with a chart and a table for each norm."""
    found = epsilon_curves.epsilon_curves(subjects)
    measured = [each.subject for each in found]
    absent = [frame.missing(each, "The accuracy curve", "report") for each in subjects if each not in measured]
    norms = dict.fromkeys(each.norm for each in found)
    shown = [_figure(norm, [each for each in found if each.norm == norm]) for norm in norms]
    return frame.section("epsilon", "Accuracy against epsilon", LEAD, shown, absent)


def _figure(norm, found):
    sizes, end = sorted({size for each in found for size in each.sizes}), max(each.end for each in found)
    legend = frame.legend(*((marks.swatch(each.subject.number), each.subject.title) for each in found))
    chart = svg.both(lambda width: _chart(norm, found, sizes, end, width))
    return [frame.figure(_caption(found, sizes, end), legend, chart), _table(found, sizes)]


def _caption(found, sizes, end):
    bases = formatting.grouped((each.subject.title, each.basis) for each in found)
    several = len(bases) > 1
    measured = "; ".join((f"of {titles} " if several else "") + basis for basis, titles in bases.items())
    further = f" The table continues to {formatting.epsilon(sizes[-1])}." if sizes[-1] > end else ""
    return f"Accuracy {measured}. Bands are 95% intervals.{further}"


def _chart(norm, found, sizes, end, width):
    x_axis = axis_of(norm, [*(size for size in sizes if size <= end), end])
    y_axis = lines.Axis("accuracy", 0, 1, [(share / 4, f"{share / 4:.0%}") for share in range(5)])
    label = "Accuracy against epsilon. " + " ".join(
        f"{each.subject.title}: "
        + ", ".join(f"{share:.0%} at {formatting.epsilon(size)}" for size, share in each.at(sizes).items())
        + "."
        for each in found
    )
    height = 320 if width == svg.WIDE else 230
    drawn = [_line(each, sizes, x_axis.high) for each in found]
    ruled = [(size, text) for size, text in _marks(found) if size <= x_axis.high]
    return lines.line_chart(label, drawn, x_axis, y_axis, width=width, height=height, marks=ruled)


def axis_of(norm, sizes):
    """Returns the axis of epsilon up to the largest of `sizes`."""
    high = max(sizes) or 1.0
    if any(map(formatting.in_255ths, sizes)):
        ticks = [(tick / 255, f"{tick}/255" if tick else "0") for tick in _powers_of_two(high * 255)]
    else:
        ticks = [(tick, f"{tick:g}") for tick in svg.ticks(0, high, TICKS)]
    name = f" in {formatting.NORMS.get(norm, norm)}" if norm else ""
    return lines.Axis(f"epsilon{name} (image values in [0, 1])", 0, high, ticks)


def _powers_of_two(high):
    """Returns ticks up to `high` whose step is a power of two, as in papers."""
    step = 2 ** max(0, math.ceil(math.log2(high / TICKS)))
    return range(0, math.floor(high + 1e-6) + 1, step)


def _line(curve, sizes, end):
    points = curve.drawn(end)
    marked = [point for point in curve.at(sizes).items() if point[0] <= end]
    band = tuple((size, *wilson(share, curve.examples)) for size, share in points)
    number = curve.subject.number
    return lines.Line(points, marks.colour(number), band=band, shape=number, marked=marked)


def _marks(found):
    """Returns (epsilon, text) pairs for the sizes at which the runs were trained and evaluated."""
    roles = {}
    for each in found:
        threat = each.subject.threat
        evaluated = threat[1] if threat and threat[0] == each.norm else None
        for size, role in ((each.subject.trained_epsilon, "trained"), (evaluated, "evaluated")):
            if size:
                roles.setdefault(formatting.epsilon(size), {"size": size})[role] = True
    return [(each.pop("size"), f"{formatting.listing(each)} at {text}") for text, each in roles.items()]


def _table(found, sizes):
    rows = []
    for each in found:
        shares = each.at(sizes)
        cells = [formatting.percent(shares[size], 1) if size in shares else "" for size in sizes]
        rows.append((None, [frame.title(each.subject), *cells]))
    table = frame.table("Accuracy against epsilon", ["epsilon", *map(formatting.epsilon, sizes)], rows)
    return tag("div", table, class_="short")
