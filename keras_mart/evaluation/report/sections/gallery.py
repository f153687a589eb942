"""A gallery of adversarial examples."""

import numpy as np

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.charts.pictures import picture
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import frame

LEAD = (
    "For each example: the natural image, the magnified perturbation (grey: no change, lighter: brighter, darker: "
    "darker), and the adversarial image, with the best checkpoint's predictions for both images."
)
# The largest number of examples shown.
SHOWN = 8


def gallery(subjects):
    """Returns the section with some examples per run."""
    measured = [subject for subject in subjects if subject.gallery and len(subject.gallery["images"])]
    absent = [frame.missing(each, "The gallery", "report") for each in subjects if each not in measured]
    shown = frame.cards(measured, _examples, wide=True) if measured else None
    return frame.section("gallery", "Adversarial examples", LEAD, shown, absent)


def _examples(subject):
    shown = {name: values[:SHOWN] for name, values in subject.gallery.items() if values.ndim}
    perturbations = shown["adversarial"] - shown["images"]
    factor = magnification(perturbations)
    examples = [
        _example(subject, index, {name: values[index] for name, values in shown.items()}, perturbation, factor)
        for index, perturbation in enumerate(perturbations)
    ]
    attack, size = str(subject.gallery["attack"]), float(subject.gallery["epsilon"])
    caption = [
        "The perturbation is magnified ",
        tag("b", f"{factor:g} times"),
        f"; epsilon is {formatting.epsilon(size)}. ",
        tag("code", attack),
    ]
    return frame.figure(caption, tag("div", examples, class_="examples"))


def magnification(perturbations):
    """Returns the factor that magnifies the largest change to black or white, to two digits."""
    largest = float(np.max(np.abs(perturbations)))
    return float(f"{0.5 / largest:.2g}") if largest > 0 else 1.0


def _example(subject, index, example, perturbation, factor):
    label, natural, predicted = (int(example[name]) for name in ("labels", "natural", "predicted"))
    named = subject.class_name
    where = f"{subject.title}, example {index + 1}"
    columns = [
        _column(
            "natural",
            picture(example["images"], f"{where}: natural image of class {named(label)}, predicted {named(natural)}"),
            _prediction(named(natural), natural == label),
        ),
        _column(
            "perturbation",
            picture(0.5 + factor * perturbation, f"{where}: perturbation, {factor:g} times"),
            f"{factor:g} times",
        ),
        _column(
            "adversarial",
            picture(example["adversarial"], f"{where}: adversarial image, predicted {named(predicted)}"),
            _prediction(named(predicted), predicted == label),
        ),
    ]
    return tag("div", tag("p", f"label {named(label)}", class_="label"), columns, class_="example")


def _column(name, image, below):
    return tag("div", tag("small", name), image, tag("span", below))


def _prediction(name, right):
    return tag(
        "span",
        f"{'✓' if right else '✗'} predicted {name}",
        class_="good" if right else "bad",
    )
