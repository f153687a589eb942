"""Draws a confusion matrix as a heat map, with counts in the cells if there are few classes."""

import dataclasses

import numpy as np

from keras_mart.evaluation.report.charts import svg
from keras_mart.evaluation.report.markup import tag

# With more classes, counts do not fit into the cells.
COUNTED = 12
LARGEST_CELL = 64
LEFT, TOP, RIGHT = 46, 44, 6
# Space for a long name beside the cells and, rotated, above them.
NAME = 90
# (share, opacity): a cell gets the opacity of the first level that reaches its share. No opacity is between 0.55 and
# 0.9, where neither dark nor light text would be legible.
LEVELS = ((0.02, 0.12), (0.05, 0.2), (0.1, 0.28), (0.2, 0.36), (0.35, 0.44), (0.6, 0.55), (0.85, 0.9), (1.0, 1.0))
TEXT_TURNS = 0.7


@dataclasses.dataclass(frozen=True)
class Grid:
    """The position of the cells: the upper left corner and a cell's side."""

    left: float
    top: float
    cell: float

    def corner(self, row, column):
        """Returns the (x, y) of a cell's upper left corner."""
        return self.left + column * self.cell, self.top + row * self.cell


def heatmap(label, counts, names, *, width):
    """Draws [labels, predicted] counts of named classes; a cell's opacity shows its share of the row."""
    classes = len(counts)
    named = _named(classes)
    shown = {index: svg.shorten(names[index], NAME) for index in named}
    longest = svg.LETTER * max(map(len, shown.values()))
    left = max(LEFT, longest + 8)
    cell = min(LARGEST_CELL, (width - left - RIGHT) / classes)
    turned = longest > cell * named.step
    grid = Grid(left, TOP + longest - 10 if turned else TOP, cell)
    side = cell * classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    draw = _counted if classes <= COUNTED else _compact
    parts = [
        svg.text(0, 13, "label ↓"),
        svg.text(left + 28, 13, "predicted class →"),
        [_names(name, index, grid, turned) for index, name in shown.items()],
        draw(counts, shares, grid),
        tag("rect", x=left, y=grid.top, width=svg.number(side), height=svg.number(side), class_="border"),
    ]
    return svg.frame(label, width, grid.top + side + 4, *parts)


def level(share):
    """Returns the opacity of a cell with this share of its row."""
    return 0.0 if share == 0 else next(opacity for limit, opacity in LEVELS if share <= limit + 1e-9)


def _named(classes):
    """Returns the classes whose names are shown at the axes."""
    step = 1 if classes <= COUNTED else int(svg.ticks(0, classes - 1, 6, least=1)[1])
    return range(0, classes, step)


def _names(name, index, grid, turned):
    x, y = grid.corner(index + 0.5, index + 0.5)
    above = svg.text(x + 4, grid.top - 8, name, turned=True) if turned else svg.text(x, grid.top - 8, name, "middle")
    return [above, svg.text(grid.left - 8, y + 4, name, "end")]


def _counted(counts, shares, grid):
    parts, cell = [], grid.cell
    for (row, column), count in np.ndenumerate(counts):
        opacity = level(shares[row, column])
        x, y = grid.corner(row, column)
        box = tag(
            "rect",
            x=svg.number(x + 1),
            y=svg.number(y + 1),
            width=svg.number(cell - 2),
            rx=3,
            height=svg.number(cell - 2),
            class_=_kind(row, column),
            fill_opacity=opacity,
        )
        class_ = "turned" if opacity > TEXT_TURNS else "strong"
        number = svg.text(x + cell / 2, y + cell / 2 + 4, count, "middle", class_, room=cell - 3)
        parts += [box if opacity else None, number if count else None]
    return parts


def _compact(counts, shares, grid):
    """Draws all cells of one colour as one path: thousands of elements would render slowly."""
    paths, cell = {}, grid.cell
    for row, column in zip(*map(np.ndarray.tolist, np.nonzero(counts)), strict=True):
        x, y = grid.corner(row, column)
        place = f"M{x:.2f} {y:.2f}h{cell:.2f}v{cell:.2f}h-{cell:.2f}z"
        paths.setdefault((_kind(row, column), level(shares[row, column])), []).append(place)
    return [tag("path", d="".join(path), class_=kind, fill_opacity=opacity) for (kind, opacity), path in paths.items()]


def _kind(row, column):
    return "right" if row == column else "wrong"
