"""What the sections share: their frame, names of runs, tables, and what stands where data are missing."""

from keras_mart.evaluation.report import words
from keras_mart.evaluation.report.charts import marks
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.table import WORST_CASE

NOT_MEASURED = tag("span", "not measured", class_="empty")


def section(name, heading, lead, *content):
    """A part of the page: its id, its heading, and a sentence or two on what it shows."""
    return tag("section", tag("h2", heading), tag("p", lead, class_="lead"), *content, id=name)


def title(subject):
    """A run's name behind its mark."""
    return tag("span", marks.swatch(subject.number), tag("span", subject.title, title=subject.title), class_="run")


def card(subject, *content):
    """A box about one run."""
    return tag("article", tag("h3", title(subject)), *content, class_="card")


def cards(subjects, show, *, wide=False):
    """A box for each run, with what `show` makes of it."""
    return tag("div", [card(each, show(each)) for each in subjects], class_="cards wide" if wide else "cards")


def missing(subject, what, mode, *flags):
    """One line: what was not measured, and the command that measures it."""
    command = words.command(subject.run.path, mode, *flags)
    line = [f"{what} of ", tag("b", subject.title), ": not measured. Run ", tag("code", command)]
    return tag("p", line, class_="missing")


def table(label, head, rows):
    """A table that scrolls in its own box where it is too wide; `head` and `rows` are lists of cells.

    Each row is (CSS class or None, cells); its first cell is its header.
    """
    # Equal widths, so that what is drawn in the cells compares.
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
    """The CSS class of an attack's row."""
    return "stage" if "/" in name else "total" if name == WORST_CASE else None


def figure(caption, *content):
    """Content with a caption below."""
    return tag("figure", *content, tag("figcaption", caption))


def strip(subject, accuracy, interval):
    """An accuracy and its interval on a line from 0 to 100%."""
    low, high = interval
    spread = tag("i", style=f"left:{low:.2%};right:{1 - high:.2%}")
    dot = tag("b", style=f"left:{accuracy:.2%}")
    return tag("span", spread, dot, class_=f"strip {marks.colour(subject.number)}", aria_hidden="true")


def legend(*entries):
    """(key, text) pairs that explain a chart's lines."""
    return tag("ul", [tag("li", key, tag("span", text)) for key, text in entries], class_="legend")
