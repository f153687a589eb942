"""SVG elements that the charts share: frame, text, scales and ticks."""

import dataclasses
import math

from keras_mart.evaluation.report.markup import tag

# In pixels. A narrow chart fits a phone or a card, a wide one the page.
NARROW, WIDE = 352, 920
# An upper bound of a letter's mean width.
LETTER = 9


def frame(label, width, height, *children):
    """Returns the SVG element of a chart; `label` describes it to screen readers."""
    size = "wide" if width == WIDE else "narrow"
    return tag(
        "svg", *children, viewBox=f"0 0 {width} {number(height)}", class_=f"chart {size}", role="img", aria_label=label
    )


def both(draw):
    """Returns a wide and a narrow chart, of which the page shows one; `draw` takes the width."""
    return tag("div", draw(WIDE), draw(NARROW), class_="adaptive")


def text(x, y, content, anchor="start", class_=None, *, turned=False, room=math.inf):
    """Returns text at a point, rotated upwards if `turned`, and condensed if it may be wider than `room`."""
    x, y = number(x), number(y)
    rotation = f"rotate(-90 {x} {y})" if turned else None
    too_wide = LETTER * len(str(content)) > room
    length = {"textLength": number(room), "lengthAdjust": "spacingAndGlyphs"} if too_wide else {}
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=class_, transform=rotation, **length)


def rule(x1, y1, x2, y2, class_):
    """Returns a straight line."""
    return tag("path", d=f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}", class_=class_)


def number(value):
    """Formats a coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def shorten(content, width):
    """Cuts text to a width in pixels, because SVG does not wrap lines."""
    letters = int(width / LETTER)
    return content if len(content) <= letters else content[: letters - 1].rstrip() + "…"


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to coordinates from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value):
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low, high, count=5, least=0.0):
    """Returns about `count` round values in [low, high], at least `least` apart."""
    raw = max((high - low) / count, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9)), least)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]
