"""A dumbbell chart: two values per row, and the gap between them."""

import dataclasses

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.charts import svg
from keras_mart.evaluation.report.charts.marks import colour, shape
from keras_mart.evaluation.report.markup import tag

SIDE, ROW, FIRST = 10, 54, 16
# Width reserved for the figures at the right end of a row.
FIGURES = 150


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row: its title, its run's number, and two shares, drawn as an open and a filled marker."""

    title: str
    number: int
    open: float
    filled: float

    @property
    def figures(self):
        return f"{formatting.percent(self.open)} → {formatting.percent(self.filled)}"


def dumbbell(label, pairs, axis, *, width):
    """Returns a chart with a row for each `Pair`, over one axis from 0 to 100% with the title `axis`."""
    x = svg.Scale(0, 1, SIDE, width - SIDE)
    bottom = FIRST + ROW * len(pairs) - 8
    levels = [
        [svg.rule(x(share), 0, x(share), bottom, "grid"), svg.text(x(share), bottom + 18, f"{share:.0%}", _side(share))]
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    rows = [_row(pair, FIRST + ROW * place, x, width) for place, pair in enumerate(pairs)]
    return svg.frame(label, width, bottom + 42, levels, rows, svg.text(width / 2, bottom + 38, axis, "middle"))


def _side(share):
    return {0: "start", 1: "end"}.get(share, "middle")


def _row(pair, y, x, width):
    title = svg.text(SIDE, y, svg.shorten(pair.title, width - FIGURES), class_="strong halo")
    figures = svg.text(width - SIDE, y, pair.figures, "end", "halo")
    bar = svg.rule(x(pair.filled), y + 18, x(pair.open), y + 18, "bar")
    dots = [shape(pair.number, x(pair.open), y + 18, 6.5, "ring"), shape(pair.number, x(pair.filled), y + 18, 5)]
    return tag("g", bar, dots, title, figures, class_=colour(pair.number))
