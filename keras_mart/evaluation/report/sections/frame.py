"""Elements that the sections share: headings, run titles, cards, tables, and notes on missing data."""

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.charts import marks
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.table import WORST_CASE

NOT_MEASURED = tag("span", "not measured", class_="empty")


def section(name, heading, lead, *content):
    """Returns a section with its id, heading and introduction."""
    return tag("section", tag("h2", heading), tag("p", lead, class_="lead"), *content, id=name)


def title(subject):
    """Returns a run's title with its coloured marker."""
    return tag("span", marks.swatch(subject.number), tag("span", subject.title, title=subject.title), class_="run")


def card(subject, *content):
    """Returns a box about one run."""
    return tag("article", tag("h3", title(subject)), *content, class_="card")


def cards(subjects, show, *, wide=False):
    """Returns a box for each run with the content that `show` returns for it."""
    return tag("div", [card(each, show(each)) for each in subjects], class_="cards wide" if wide else "cards")


def missing(subject, what, mode, *flags):
    """Returns a line on what was not measured, with the command that measures it."""
    command = formatting.command(subject.run.path, mode, *flags)
    line = [f"{what} of ", tag("b", subject.title), ": not measured. Run ", tag("code", command)]
    return tag("p", line, class_="missing")


def table(label, head, rows):
    """Returns a table that scrolls horizontally if it is too wide.

    `head` is a list of cells. Each row is (CSS class or None, list of cells); its first cell is its header.
    """
    # Equal widths make the strips in the cells comparable.
    width = f"width:{80 / (len(head) - 1):.3g}%"
    header = tag(
        "tr", [tag("th", cell, scope="col", style=width if place else None) for place, cell in enumerate(head)]
    )
    body = [
        tag("tr", tag("th", first, scope="row"), [tag("td", cell) for cell in rest], class_=class_)
        for class_, (first, *rest) in rows
    ]
    # Focusable, so that the arrow keys scroll it.
    content = tag("table", tag("thead", header), tag("tbody", body))
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def kind(name):
    """Returns the CSS class of an attack's row."""
    return "stage" if "/" in name else "total" if name == WORST_CASE else None


def figure(caption, *content):
    """Returns content with a caption below."""
    return tag("figure", *content, tag("figcaption", caption))


def strip(subject, accuracy, interval):
    """Returns an accuracy and its interval drawn on a line from 0 to 100%."""
    low, high = interval
    spread = tag("i", style=f"left:{low:.2%};right:{1 - high:.2%}")
    dot = tag("b", style=f"left:{accuracy:.2%}")
    return tag("span", spread, dot, class_=f"strip {marks.colour(subject.number)}", aria_hidden="true")


def legend(*entries):
    """Returns a chart's legend, of (key, text) pairs."""
    return tag("ul", [tag("li", key, tag("span", text)) for key, text in entries], class_="legend")
