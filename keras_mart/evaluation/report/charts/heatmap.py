"""A confusion matrix as a heat map: with counts for few classes, without for many."""

import numpy as np

from keras_mart.evaluation.report.charts import svg
from keras_mart.evaluation.report.markup import tag

# With more classes a count no longer fits into its cell.
COUNTED = 12
LARGEST_CELL = 64
LEFT, TOP, RIGHT = 46, 44, 6
# A share takes the first level that reaches it. There is none between 0.55 and 0.9, where neither dark nor light text
# would stand out from the cell.
LEVELS = ((0.02, 0.12), (0.05, 0.2), (0.1, 0.28), (0.2, 0.36), (0.35, 0.44), (0.6, 0.55), (0.85, 0.9), (1.0, 1.0))
TEXT_TURNS = 0.7


def heatmap(label, counts, *, width):
    """[labels, predicted] counts; the colour is the share of its row, the diagonal has a colour of its own."""
    classes = len(counts)
    cell = min(LARGEST_CELL, (width - LEFT - RIGHT) / classes)
    side = cell * classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    draw = _counted if classes <= COUNTED else _compact
    parts = [
        svg.text(0, 13, "label ↓"),
        svg.text(LEFT + 28, 13, "predicted class →"),
        [_names(index, cell) for index in _named(classes)],
        draw(counts, shares, cell),
        tag("rect", x=LEFT, y=TOP, width=svg.number(side), height=svg.number(side), class_="border"),
    ]
    return svg.frame(label, width, TOP + side + 4, *parts)


def level(share):
    """The opacity of a cell with that share of its row."""
    return 0.0 if share == 0 else next(opacity for limit, opacity in LEVELS if share <= limit + 1e-9)


def _named(classes):
    """The classes whose numbers stand at the axes."""
    return range(classes) if classes <= COUNTED else map(int, svg.ticks(0, classes - 1, 6, least=1))


def _names(index, cell):
    middle = (index + 0.5) * cell
    return [svg.text(LEFT + middle, TOP - 8, index, "middle"), svg.text(LEFT - 8, TOP + middle + 4, index, "end")]


def _counted(counts, shares, cell):
    parts = []
    for (row, column), count in np.ndenumerate(counts):
        opacity = level(shares[row, column])
        x, y = LEFT + column * cell, TOP + row * cell
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
        number = svg.text(x + cell / 2, y + cell / 2 + 4, count, "middle", class_)
        parts += [box if opacity else None, number if count else None]
    return parts


def _compact(counts, shares, cell):
    """One path for the cells of a colour: thousands of elements would be slow to show."""
    paths = {}
    for row, column in zip(*map(np.ndarray.tolist, np.nonzero(counts)), strict=True):
        place = f"M{LEFT + column * cell:.2f} {TOP + row * cell:.2f}h{cell:.2f}v{cell:.2f}h-{cell:.2f}z"
        paths.setdefault((_kind(row, column), level(shares[row, column])), []).append(place)
    return [tag("path", d="".join(path), class_=kind, fill_opacity=opacity) for (kind, opacity), path in paths.items()]


def _kind(row, column):
    return "right" if row == column else "wrong"
