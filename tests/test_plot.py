"""Tests of the content of the plots, not of their appearance."""

import importlib
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import linear_network

import keras_mart as km
from keras_mart.evaluation.table import Table, wilson

BALL = {"norm": "Linf", "epsilon": 0.2}
HISTORY = {
    "loss": [2.5, 1.5],
    "natural_accuracy": [0.5, 0.75],
    "adversarial_accuracy": [0.25, 0.5],
    "val_loss": [2.25, 1.25],
    "val_natural_accuracy": [0.5, 0.625],
    "val_adversarial_accuracy": [0.125, 0.375],
}


@pytest.fixture(autouse=True)
def closed():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def table(distances=(0.1, 0.3, 0.1, np.inf), threat=BALL):
    """Returns a table of four examples of two classes; only pgd20 misclassifies one."""
    predictions = {"natural": [0, 0, 1, 1], "pgd20": [0, 1, 1, 1], "fmn": [0, 0, 1, 1]}
    record = {"attacks": {"fmn": {"class": "FMN", "threat": threat}}}
    predictions = {name: np.array(each) for name, each in predictions.items()}
    nothing, distances = dict.fromkeys(predictions, 0), {"fmn": np.array(distances)}
    names = ("cat", "dog")
    return Table(np.array([0, 0, 1, 1]), predictions, nothing, nothing, False, distances, names, record)


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def texts(labels):
    return [label.get_text() for label in labels]


def test_history_draws_the_accuracies_in_percent():
    fitted = keras.callbacks.History()
    seldom = {"val_cw_accuracy": [0.25]}  # not measured in every epoch
    fitted.history, fitted.epoch = {**HISTORY, **seldom}, [4, 5]  # training resumed after four epochs
    ax = km.plot.history(fitted)
    drawn = lines(ax)
    assert {name: list(line.get_ydata()) for name, line in drawn.items()} == {
        "natural, training": [50, 75],
        "natural, validation": [50, 62.5],
        "adversarial, training": [25, 50],
        "adversarial, validation": [12.5, 37.5],
    }
    assert all(list(line.get_xdata()) == [5, 6] for line in drawn.values())
    training, validation = drawn["adversarial, training"], drawn["adversarial, validation"]
    assert (training.get_linestyle(), validation.get_linestyle()) == ("--", "-")
    assert training.get_color() == validation.get_color() != drawn["natural, training"].get_color()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "accuracy, %")
    assert texts(ax.get_legend().get_texts()) == list(drawn)


def test_history_draws_given_columns_into_given_axes():
    _, ax = plt.subplots()
    assert km.plot.history(HISTORY, ["loss", "val_loss"], ax=ax) is ax
    assert {name: list(line.get_ydata()) for name, line in lines(ax).items()} == {
        "loss, training": [2.5, 1.5],
        "loss, validation": [2.25, 1.25],
    }
    assert list(ax.get_lines()[0].get_xdata()) == [1, 2]
    assert ax.get_ylabel() == "loss"


@pytest.mark.parametrize(
    ("values", "columns", "said"),
    [
        ({"loss": [1.0]}, None, "accuracy of each epoch. Received: loss"),
        (HISTORY, ["val_los"], "Did you mean 'val_loss'"),
        ({**HISTORY, "val_loss": [1.0]}, ["loss", "val_loss"], "Received: val_loss, with 1 of 2"),
    ],
)
def test_history_says_what_is_wrong(values, columns, said):
    with pytest.raises(ValueError, match=said):
        km.plot.history(values, columns)


def test_curve_draws_the_accuracy_at_every_epsilon():
    first, second = table(), table((0, 0.15, 0.2, 0.4))
    ax = km.plot.curve({"one": first, "other": second})
    drawn = lines(ax)
    for name, each in {"one": first, "other": second}.items():
        epsilons, shares = drawn[name].get_data()
        np.testing.assert_allclose(shares, 100 * each.curve("fmn", epsilons)[1])
        assert set(each.curve("fmn")[0]) <= set(epsilons) and epsilons[-1] == 0.4
        assert drawn[name].get_drawstyle() == "steps-post"
    band = ax.collections[0].get_paths()[0].vertices
    for bound in wilson(0.5, 4):
        assert np.isclose(band, [0.1, 100 * bound]).all(axis=1).any()
    assert list(drawn["epsilon 0.2"].get_xdata()) == [0.2, 0.2]
    assert ax.get_xlabel() == "epsilon in L∞ (image values in [0, 1])" and ax.get_ylabel() == "accuracy, %"
    assert texts(ax.get_legend().get_texts()) == ["one", "other", "epsilon 0.2"]


def test_curve_has_ticks_in_255ths_where_epsilon_is_one():
    ax = km.plot.curve(table((2 / 255, 10 / 255, 16 / 255, np.inf), {"norm": "Linf", "epsilon": 8 / 255}), "fmn")
    assert "8/255" in texts(ax.get_xticklabels()) and "epsilon 8/255" in lines(ax)


def test_curve_if_all_examples_are_robust():
    assert (
        100 * table((np.inf,) * 4).curve("fmn")[1] == km.plot.curve(table((np.inf,) * 4)).get_lines()[0].get_ydata()[-1]
    )


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "at least one table"),
        (Table(np.array([0]), {"natural": np.array([0])}, {}, {}), "attack with distances"),
        ([table(), table(threat={"norm": "L2", "epsilon": 1.0})], "one norm. Received: L2 and Linf"),
    ],
)
def test_curve_says_what_is_wrong(tables, said):
    with pytest.raises(ValueError, match=said):
        km.plot.curve(dict(enumerate(tables)) if isinstance(tables, list) else tables)


def test_confusion_draws_the_strongest_attack():
    ax = km.plot.confusion(table())
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), [[0, 1], [1, 0]])  # one colour on the diagonal
    opacity = image.get_alpha()
    assert opacity[1, 1] > opacity[0, 0] == opacity[0, 1] > opacity[1, 0] == 0
    assert {text.get_position(): text.get_text() for text in ax.texts} == {(0, 0): "1", (1, 0): "1", (1, 1): "2"}
    assert texts(ax.get_xticklabels()) == texts(ax.get_yticklabels()) == ["cat", "dog"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "label")
    assert ax.get_title() == "pgd20: 75.00% correct"


def test_confusion_of_a_given_name():
    assert km.plot.confusion(table(), "natural").get_title() == "natural: 100.00% correct"
    with pytest.raises(ValueError, match="Did you mean 'pgd20'"):
        km.plot.confusion(table(), "pgd2")


def test_confusion_of_many_classes_has_no_counts():
    labels = np.arange(30)
    ax = km.plot.confusion(Table(labels, {"natural": labels}, {}, {}))
    assert not ax.texts and texts(ax.get_xticklabels()) == [str(label) for label in range(0, 30, 3)]


def test_gallery_draws_what_the_attack_finds():
    """A linear network on four pixels: FGSM moves each by epsilon, and fools it on the image near the boundary."""
    weights = [[0, 1], [0, 1], [0, 1], [0, 1]]
    network = linear_network(weights, [0, -2], (2, 2, 1))  # class 1 if the mean is above 0.5
    images = np.stack([np.full((2, 2, 1), 0.55), np.full((2, 2, 1), 0.9), np.full((2, 2, 1), 0.2)]).astype("float32")
    attack = km.FGSM(km.Linf(0.1))
    figure = km.plot.gallery(network, images, [1, 1, 0], attack, limit=2, class_names=["cat", "dog"])
    axes = np.reshape(figure.axes, (3, 2))
    shown = np.array([[ax.images[0].get_array() for ax in row] for row in axes])
    np.testing.assert_allclose(shown[0], images[:2, ..., 0])
    np.testing.assert_allclose(shown[2], images[:2, ..., 0] - 0.1, atol=1e-6)
    np.testing.assert_allclose(shown[1], 0, atol=1e-6)  # the largest change is black
    assert all(ax.images[0].get_clim() == (0, 1) for ax in figure.axes)
    assert [ax.get_title() for ax in axes[0]] == ["label dog"] * 2
    assert [[ax.get_xlabel() for ax in row] for row in axes] == [["✓ dog"] * 2, ["", ""], ["✗ cat", "✓ dog"]]
    assert [row[0].get_ylabel() for row in axes] == ["natural", "change,\n5 times", "adversarial"]


def test_gallery_keeps_colours_and_says_what_is_wrong():
    network, attack = linear_network(np.ones((12, 2)), [0, 1], (2, 2, 3)), km.FGSM(km.Linf(0.1))
    images = np.random.default_rng(0).uniform(size=(1, 2, 2, 3)).astype("float32")
    shown = km.plot.gallery(network, images, [1], attack).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, images[0])
    with pytest.raises(ValueError, match="height, width, channels"):
        km.plot.gallery(linear_network(np.ones((4, 2)), [0, 1]), np.ones((1, 4), "float32"), [1], attack)


def test_a_missing_matplotlib_is_named(monkeypatch):
    """The package can be imported without matplotlib, but plotting raises ImportError."""
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    importlib.reload(km.plot)
    draws = [lambda: km.plot.history(HISTORY), lambda: km.plot.curve(table()), lambda: km.plot.confusion(table())]
    for draw in [*draws, lambda: km.plot.gallery(None, None, None, None)]:
        with pytest.raises(ImportError, match=r'pip install "keras_mart\[plot\]"'):
            draw()
