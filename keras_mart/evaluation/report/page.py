"""The HTML document that contains the report's sections."""

import pathlib

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.markup import Markup, join, tag
from keras_mart.evaluation.report.sections import SECTIONS

STYLE = pathlib.Path(__file__).with_name("style.css")
# Makes the browser refuse to load anything from outside the file.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(subjects):
    """Returns the HTML document on the subjects."""
    titles = formatting.listing(subject.title for subject in subjects)
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
    threats = dict.fromkeys(formatting.threat(*subject.threat) for subject in subjects if subject.threat)
    examples = dict.fromkeys(f"{subject.examples:,} test examples" for subject in subjects if subject.examples)
    links = [tag("li", tag("a", name.capitalize(), href=f"#{name}")) for name in _names()]
    return tag(
        "header",
        tag("p", "keras_mart · robustness report", class_="eyebrow"),
        tag("h1", titles),
        tag("p", " · ".join([*threats, *examples]), class_="facts"),
        tag("nav", tag("ul", links), aria_label="Sections"),
    )


def _names():
    return [section.__module__.rpartition(".")[2] for section in SECTIONS]


def _footer():
    accuracies = "Accuracies are measured on the test set, on the best checkpoint, chosen on held-out training data. "
    intervals = (
        "Intervals are 95% Wilson intervals: they account for the choice of test examples, not for the randomness of "
        "training."
    )
    return tag("footer", tag("p", accuracies, intervals))
