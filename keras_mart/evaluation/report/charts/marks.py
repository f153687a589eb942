"""The colour and shape of each run, the same in all charts, and the keys of legends."""

from keras_mart.evaluation.report.charts.svg import number
from keras_mart.evaluation.report.markup import tag

# The number of colours in style.css. Further runs reuse them with other shapes.
COLOURS = 8
# Corners of a shape of radius 1; none for a circle. Not everybody can distinguish runs by colour only.
SHAPES = (
    (),
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((0, -1.15), (1.05, 0.75), (-1.05, 0.75)),
    ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    ((0, 1.15), (1.05, -0.75), (-1.05, -0.75)),
)


def colour(index):
    """Returns the CSS class of a run's colour."""
    return f"run-{index % COLOURS}"


def shape(index, x, y, radius, class_="dot"):
    """Returns a run's shape, centred on a point."""
    corners = SHAPES[index % len(SHAPES)]
    if not corners:
        return tag("circle", cx=number(x), cy=number(y), r=number(radius), class_=class_)
    points = " ".join(f"{number(x + radius * dx)},{number(y + radius * dy)}" for dx, dy in corners)
    return tag("polygon", points=points, class_=class_)


def swatch(index):
    """Returns a run's shape in its colour, the key to its title."""
    return _small(shape(index, 7, 7, 5.5), colour(index))


def key(style, class_):
    """Returns a piece of a line, a key in a legend."""
    piece = tag("path", d="M2 6H26", class_=f"line {style}")
    return tag("svg", piece, viewBox="0 0 28 12", class_=f"key {class_}", aria_hidden="true")


def end(class_):
    """Returns a marker of a dumbbell chart, a key in a legend."""
    return _small(shape(0, 7, 7, 5, class_), "accent")


def _small(drawn, class_):
    return tag("svg", drawn, viewBox="0 0 14 14", class_=f"swatch {class_}", aria_hidden="true")
