"""Evaluation: accuracies that can be counted by hand, in whatever form the data come; the table; bad input."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import conv_network, images_and_labels, linear_network

import keras_mart as km
from keras_mart.evaluation import Table
from keras_mart.evaluation.presets import preset
from keras_mart.evaluation.table import side_by_side

# One value, two classes: above 0.5 the class is 1. FGSM of size 0.1 moves each value by 0.1 towards the other class.
IMAGES = np.array([[0.1], [0.35], [0.45], [0.55], [0.9], [0.7], [0.3]], "float32")
LABELS = np.array([0, 0, 0, 1, 1, 0, 1])
# Right: the first five. Still right under FGSM: 0.1, 0.35 and 0.9.
BY_HAND = {"natural": 5 / 7, "fgsm": 3 / 7}
FGSM = {"fgsm": km.FGSM(km.Linf(0.1))}
DATASET = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))

FORMS = {
    "arrays": (IMAGES, LABELS),
    "a list of tensors": [tf.constant(IMAGES), tf.constant(LABELS)],
    "column of labels": (IMAGES, LABELS[:, None]),
    "dataset": DATASET.batch(3),  # the last batch holds one
    "indexed dataset": DATASET.enumerate().map(lambda index, example: ((example[0], index), example[1])).batch(3),
    "weighted dataset": DATASET.map(lambda image, label: (image, label, 0.0)).batch(3),
    "dataset of unknown size": DATASET.filter(lambda image, label: True).batch(3),
    "three batches": list(DATASET.batch(3)),
    "two batches": list(DATASET.batch(4)),
}


@pytest.fixture(scope="module")
def threshold():
    return linear_network([[0, 10]], [0, -5])


@pytest.mark.parametrize("form", FORMS)
def test_equals_counting_by_hand(form, threshold):
    table = km.evaluate(threshold, FORMS[form], FGSM, batch_size=3, verbose=0)
    assert table.accuracy == BY_HAND and table.examples == 7
    assert list(table.accuracy) == list(table.seconds) == ["natural", "fgsm"]


def test_a_generator_and_a_wrapped_model(threshold):
    assert km.evaluate(km.Standard(threshold), iter(DATASET.batch(3)), FGSM, verbose=0).accuracy == BY_HAND


def test_shows_progress(threshold, capsys):
    km.evaluate(threshold, FORMS["dataset"], FGSM)
    shown = capsys.readouterr().out
    assert "3/3" in shown and f"natural: {5 / 7:.4f} - fgsm: {3 / 7:.4f}" in shown


def test_the_seed_decides(threshold):
    # Steps too small to matter: what counts is the random start, different for each of 40 equal batches.
    data, attacks = (np.full((40, 1), 0.45), np.zeros(40, int)), {"start": km.PGD(km.Linf(0.1), 1, step_size=1e-9)}

    def accuracy(**seed):
        return km.evaluate(threshold, data, attacks, batch_size=1, verbose=0, **seed)["start"]

    assert accuracy(seed=1) == accuracy(seed=1) and accuracy() == accuracy(seed=0)
    assert len({accuracy(seed=seed) for seed in range(5)}) > 1
    assert 0 < accuracy() < 1


# --- the table ---

TABLE = Table(1234, {"natural": 1.0, "pgd20": 0.25}, {"natural": 0.5, "pgd20": 12.34})


def test_table_as_text():
    assert str(TABLE) == "\n".join(
        [
            "attack   accuracy  seconds",
            "natural  100.00%       0.5",
            "pgd20     25.00%      12.3",
            "(1,234 examples)",
        ]
    )


def test_table_as_json():
    assert Table.from_json(TABLE.to_json()) == TABLE
    assert TABLE["pgd20"] == 0.25


def test_side_by_side():
    other = dataclasses.replace(TABLE, accuracy={"natural": 0.9, "pgd20": 0.5})
    assert side_by_side({"standard": TABLE, "mart": other}) == "\n".join(
        [
            "method    natural    pgd20",
            "standard  100.00%   25.00%",
            "mart       90.00%   50.00%",
        ]
    )


# --- presets ---


@pytest.mark.parametrize("threat", [km.Linf(0.3), km.L2(0.5)], ids=repr)
def test_presets(threat):
    step = threat.epsilon / 10
    assert preset("fgsm", threat) == km.FGSM(threat)
    assert preset("pgd20", threat) == km.PGD(threat, 20, step_size=step)
    assert preset("pgd7", threat) == km.PGD(threat, 7, step_size=step)
    assert preset("cw", threat) == km.CW(threat, 30, step_size=step)


@pytest.mark.parametrize("name, near", [("fsgm", "fgsm"), ("pdg20", "pgd20"), ("pgd0100", "pgd100")])
def test_an_unknown_preset(name, near):
    with pytest.raises(
        ValueError, match=f"`attacks` must be one of fgsm, .* Received: '{name}'. Did you mean '{near}'"
    ):
        preset(name, km.Linf(0.1))


# --- bad input ---

X, Y = images_and_labels()


@pytest.mark.parametrize(
    "data, attacks, message",
    [
        ((X, Y), {"natural": km.FGSM(km.Linf(0.1))}, '`attacks` must not use the name "natural"'),
        ((X[:0], Y[:0]), {}, "The data must not be empty"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).take(0), {}, "The data must not be empty"),
        (tf.data.Dataset.from_tensor_slices(X).batch(4), {}, "Received: no labels"),
        ((255 * np.round(X), Y), {}, r"Images must lie in \[0, 1\]\. Received: values from 0 to 255\..* by 255"),
        ((X, Y + 1), {}, r"Labels must lie in \[0, 3\)\. Received: labels from 1 to 3"),
        ((X, Y - 1), {}, r"Labels must lie in \[0, 3\)\. Received: labels from -1 to 1"),
        ((X, np.eye(3)[Y]), {}, "Labels must be class indices"),
    ],
)
def test_data_that_cannot_be_judged(data, attacks, message):
    with pytest.raises(ValueError, match=message):
        km.evaluate(conv_network(), data, attacks, verbose=0)


def test_a_network_that_ends_in_a_softmax():
    network = keras.Sequential([conv_network(), keras.layers.Softmax()])
    with pytest.raises(ValueError, match="`network` must return logits"):
        km.evaluate(network, (X, Y), {}, verbose=0)
