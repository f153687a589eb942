"""A run's colour and shape, which are the same in all charts, and the keys that explain lines."""

from keras_mart.evaluation.report.charts.svg import number
from keras_mart.evaluation.report.markup import tag

# style.css has so many colours. More runs than that take them again, in another shape.
COLOURS = 8
# Corners of a circle of radius 1; no corners: the circle itself. Colour alone would not tell runs apart for everybody.
SHAPES = (
    (),
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((0, -1.15), (1.05, 0.75), (-1.05, 0.75)),
    ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    ((0, 1.15), (1.05, -0.75), (-1.05, -0.75)),
)


def colour(index):
    """The CSS class of a run's colour."""
    return f"run-{index % COLOURS}"


def shape(index, x, y, radius, class_="dot"):
    """A run's shape round a point."""
    corners = SHAPES[index % len(SHAPES)]
    if not corners:
        return tag("circle", cx=number(x), cy=number(y), r=number(radius), class_=class_)
    points = " ".join(f"{number(x + radius * dx)},{number(y + radius * dy)}" for dx, dy in corners)
    return tag("polygon", points=points, class_=class_)


def swatch(index):
    """A run's shape in its colour, to stand before its name."""
    return _small(shape(index, 7, 7, 5.5), colour(index))


def key(style, class_):
    """A piece of a line, to stand before what it means."""
    piece = tag("path", d="M2 6H26", class_=f"line {style}")
    return tag("svg", piece, viewBox="0 0 28 12", class_=f"key {class_}", aria_hidden="true")


def end(class_):
    """A dumbbell's end, to stand before what it means."""
    return _small(shape(0, 7, 7, 5, class_), "accent")


def _small(drawn, class_):
    return tag("svg", drawn, viewBox="0 0 14 14", class_=f"swatch {class_}", aria_hidden="true")
