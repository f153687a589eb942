"""The page round the report's sections."""

import pathlib

from keras_mart.evaluation.report import words
from keras_mart.evaluation.report.markup import Markup, join, tag
from keras_mart.evaluation.report.sections import SECTIONS

STYLE = pathlib.Path(__file__).with_name("style.css")
# The browser itself then refuses whatever lies outside the file.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(subjects):
    """The HTML document about the subjects."""
    titles = words.listing(subject.title for subject in subjects)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"Robustness of {titles}"),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    sections = [section(subjects) for section in SECTIONS]
    body = tag("body", _header(subjects, titles), tag("main", Markup("\n".join(sections))), _footer())
    return Markup("<!DOCTYPE html>\n") + join(tag("html", head, body, lang="en")) + "\n"


def _header(subjects, titles):
    threats = dict.fromkeys(words.threat(*subject.threat) for subject in subjects if subject.threat)
    examples = dict.fromkeys(f"{subject.examples:,} test examples" for subject in subjects if subject.examples)
    links = [tag("li", tag("a", name.capitalize(), href=f"#{name}")) for name in _names()]
    return tag(
        "header",
        tag("p", "keras_mart · robustness report", class_="eyebrow"),
        tag("h1", titles),
        tag("p", " · ".join([*threats, *examples]), class_="facts"),
        tag("nav", tag("ul", links), aria_label="Parts"),
    )


def _names():
    return [section.__module__.rpartition(".")[2] for section in SECTIONS]


def _footer():
    intervals = "Accuracies are those of the best checkpoint, chosen on held-out training data, on the test set. "
    return tag(
        "footer",
        tag(
            "p",
            intervals,
            "Intervals are 95% Wilson intervals: they count chance in the examples drawn, not in training.",
        ),
    )
