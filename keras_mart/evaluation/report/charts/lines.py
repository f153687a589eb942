"""A line chart."""

import dataclasses

from keras_mart.evaluation.report.charts import svg
from keras_mart.evaluation.report.charts.marks import shape
from keras_mart.evaluation.report.markup import tag

LEFT, RIGHT, TOP, BOTTOM = 52, 26, 30, 46
# The top margin without a title.
BARE = 10
# The height of a line of text above the plot.
LINE = 17


@dataclasses.dataclass(frozen=True)
class Line:
    """A line through points.

    Attributes:
        points: (x, y) pairs, at least one.
        colour: CSS class.
        style: "solid" or "dashed".
        band: (x, low, high) triples of the band around it.
        shape: number of the shape of the markers, or `None` for no markers.
        marked: the points that have markers, by default all.
    """

    points: list
    colour: str
    style: str = "solid"
    band: tuple = ()
    shape: int | None = None
    marked: list | None = None


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis: a title, empty if the page already shows it, the range, and (value, text) ticks."""

    title: str
    low: float
    high: float
    ticks: list


def line_chart(label, lines, x_axis, y_axis, *, width, height, marks=()):
    """Returns a line chart described by `label`; `marks` are (x, text) pairs of vertical lines."""
    top = (TOP if y_axis.title else BARE) + LINE * len(marks)
    x = svg.Scale(x_axis.low, x_axis.high, LEFT, width - RIGHT)
    y = svg.Scale(y_axis.low, y_axis.high, top + height, top)
    parts = [
        svg.text(0, 13, y_axis.title) if y_axis.title else None,
        [_level(y(value), text, width) for value, text in y_axis.ticks],
        [svg.text(x(value), top + height + 18, text, "middle") for value, text in x_axis.ticks],
        svg.text((LEFT + width - RIGHT) / 2, top + height + 40, x_axis.title, "middle"),
        [_mark(x(value), text, place, y, width) for place, (value, text) in enumerate(marks)],
        [_band(line, x, y) for line in lines if line.band],
        [_line(line, x, y) for line in lines],
    ]
    return svg.frame(label, width, top + height + BOTTOM, *parts)


def _level(height, text, width):
    return [svg.rule(LEFT, height, width - RIGHT, height, "grid"), svg.text(LEFT - 8, height + 4, text, "end")]


def _mark(x, text, place, y, width):
    """Draws a vertical line with its text above the plot, to its right if it fits."""
    aside = max(0, min(x + 5, width - svg.LETTER * len(text)))
    text = svg.text(aside, TOP + LINE * (place + 1) - 8, text, class_="strong halo")
    return [svg.rule(x, TOP + LINE * place - 2, x, y.start, "mark"), text]


def _band(line, x, y):
    low = [(x(at), y(below)) for at, below, _ in line.band]
    high = [(x(at), y(above)) for at, _, above in reversed(line.band)]
    points = " ".join(f"{svg.number(at)},{svg.number(height)}" for at, height in [*low, *high])
    return tag("polygon", points=points, class_=f"band {line.colour}")


def _line(line, x, y):
    places, marked = (
        [(x(at), y(value)) for at, value in points]
        for points in (line.points, line.points if line.marked is None else line.marked)
    )
    # "h0" turns a single point into a line of length 0, which round line ends make visible.
    path = "M" + "L".join(f"{svg.number(at)} {svg.number(height)}" for at, height in places) + "h0"
    dots = [shape(line.shape, *place, 4.5) for place in marked] if line.shape is not None else None
    return tag("g", tag("path", d=path, class_=f"line {line.style}"), dots, class_=line.colour)
