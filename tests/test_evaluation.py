"""Tests of `evaluate`: accuracies counted by hand for all forms of data, the table, presets, and invalid input."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import conv_network, images_and_labels, linear_network

import keras_mart as km
from keras_mart import folding
from keras_mart.evaluation import Table
from keras_mart.evaluation.comparison import conclusion, side_by_side
from keras_mart.evaluation.presets import presets
from keras_mart.evaluation.table import wilson

# One value, two classes: above 0.5 the class is 1. FGSM of size 0.1 moves each value by 0.1 towards the other class.
IMAGES = np.array([[0.1], [0.35], [0.45], [0.55], [0.9], [0.7], [0.3]], "float32")
LABELS = np.array([0, 0, 0, 1, 1, 0, 1])
# Correct: the first five. Still correct under FGSM: 0.1, 0.35 and 0.9.
BY_HAND = {"natural": 5 / 7, "fgsm": 3 / 7, "worst_case": 3 / 7}
FGSM = {"fgsm": km.FGSM(km.Linf(0.1))}
DATASET = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))

FORMS = {
    "arrays": (IMAGES, LABELS),
    "a list of tensors": [tf.constant(IMAGES), tf.constant(LABELS)],
    "column of labels": (IMAGES, LABELS[:, None]),
    "dataset": DATASET.batch(3),  # the last batch has one example
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
    assert list(table.seconds) == ["natural", "fgsm"]
    assert table.gradients == {"natural": 0, "fgsm": 7}


def test_a_generator_and_a_wrapped_model(threshold):
    assert km.evaluate(km.Standard(threshold), iter(DATASET.batch(3)), FGSM, verbose=0).accuracy == BY_HAND


def test_under_a_strategy(two_replicas):
    with two_replicas.scope():
        network = linear_network([[0, 10]], [0, -5])
        assert km.evaluate(network, DATASET.batch(3), FGSM, verbose=0).accuracy == BY_HAND


@pytest.mark.parametrize("form, limit", [("arrays", 6), ("dataset", 6), ("dataset", 4), ("arrays", 70)])
def test_a_limit_takes_the_first_ones(form, limit, threshold):
    table = km.evaluate(threshold, FORMS[form], FGSM, batch_size=4, limit=limit, verbose=0)
    np.testing.assert_array_equal(table.labels, LABELS[:limit])
    np.testing.assert_array_equal(table.predictions["natural"], IMAGES[:limit, 0] > 0.5)


def test_data_that_a_strategy_has_split(two_replicas, threshold):
    with two_replicas.scope():
        split = two_replicas.experimental_distribute_dataset(DATASET.batch(4))
        assert km.evaluate(threshold, split, FGSM, verbose=0).accuracy == BY_HAND


def test_logits_that_are_nan_are_no_class(threshold):
    diverged = keras.Sequential([keras.Input((1,)), threshold, keras.layers.Lambda(lambda logits: logits * np.nan)])
    assert set(km.evaluate(diverged, (IMAGES, LABELS), FGSM, verbose=0).accuracy.values()) == {0.0}


def test_arrays_come_in_batches_of_equal_size(threshold):
    sizes = []

    def recording(model, images, labels, seed):
        sizes.append(len(images))
        return images

    km.evaluate(threshold, (IMAGES, LABELS), {"recording": recording}, batch_size=6, verbose=0)
    assert sizes == [3, 4]


def towards(offset):
    """Returns an attack that adds an offset to every image."""
    return lambda model, images, labels, seed: images + offset


def test_the_worst_case_is_that_of_each_example(threshold):
    table = km.evaluate(threshold, (IMAGES, LABELS), {"up": towards(0.1), "down": towards(-0.1)}, verbose=0)
    # "up" breaks 0.45, "down" breaks 0.55. Neither corrects 0.3: its label is 1, but 0.4 is still class 0.
    np.testing.assert_array_equal(table.outcomes["up"], [1, 1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(table.outcomes["down"], [1, 1, 1, 0, 1, 0, 0])
    np.testing.assert_array_equal(table.outcomes["worst_case"], [1, 1, 0, 0, 1, 0, 0])
    assert table["worst_case"] == 3 / 7 and table.gradients["up"] is None


def test_an_attack_that_corrects_an_error_does_not_correct_the_worst_case(threshold):
    table = km.evaluate(threshold, (IMAGES, LABELS), {"up": towards(0.25)}, verbose=0)
    assert table.outcomes["up"][6] and not table.outcomes["worst_case"][6]


def test_stopping_early_attacks_only_what_is_still_correct(threshold):
    seen = {}

    def recording(name, offset):
        def attack(model, images, labels, seed):
            seen[name] = np.asarray(images)[:, 0].round(2).tolist()
            return images + offset

        return attack

    attacks = {"up": recording("up", 0.1), "down": recording("down", -0.1)}
    full = km.evaluate(threshold, (IMAGES, LABELS), attacks, verbose=0)
    assert len(seen["up"]) == len(seen["down"]) == 7
    early = km.evaluate(threshold, (IMAGES, LABELS), attacks, stop_early=True, verbose=0)
    np.testing.assert_allclose(seen["up"], [0.1, 0.35, 0.45, 0.55, 0.9])
    np.testing.assert_allclose(seen["down"], [0.1, 0.35, 0.55, 0.9])
    assert early["down"] == early["worst_case"] == full["worst_case"] and early["up"] == full["up"]
    assert "ran on the examples correct" in str(early)


def test_stages_of_a_compound_attack_have_rows():
    network, (images, labels) = conv_network(), images_and_labels()
    labels = np.argmax(network(images), axis=1).astype("int32")
    attack = km.AutoAttack(km.Linf(0.05), ["apgd-ce", "apgd-t"])
    table = km.evaluate(network, (images, labels), {"aa": attack, "fgsm": km.FGSM(km.Linf(0.05))}, verbose=0)
    assert list(table.accuracy) == ["natural", "aa", "aa/apgd-ce", "aa/apgd-t", "fgsm", "worst_case"]
    assert table["natural"] == 1 >= table["aa/apgd-ce"] >= table["aa/apgd-t"] == table["aa"] > 0
    assert table["aa"] < 1
    left = np.sum(table.outcomes["aa/apgd-ce"])
    assert table.gradients["aa/apgd-ce"] == len(labels) * 101 and table.gradients["aa/apgd-t"] >= left * 101
    assert table.gradients["aa"] == table.gradients["aa/apgd-ce"] + table.gradients["aa/apgd-t"]


def test_reported_values_are_computed_by_the_original_network(monkeypatch):
    network, (images, labels) = conv_network(), images_and_labels()
    monkeypatch.setattr(folding, "view", lambda network: lambda images: -network(images, training=False))
    table = km.evaluate(network, (images, labels), {"fgsm": km.FGSM(km.Linf(0.0))}, verbose=0)
    predicted = np.argmax(network(images, training=False), axis=-1)
    for name in ("natural", "fgsm"):
        np.testing.assert_array_equal(table.predictions[name], predicted)


def test_shows_progress(threshold, capsys):
    km.evaluate(threshold, FORMS["dataset"], FGSM)
    shown = capsys.readouterr().out
    assert "natural: 5 of 7 correct" in shown and "fgsm: 3 of 7 correct" in shown
    network, (images, labels) = conv_network(), images_and_labels()
    km.evaluate(network, (images, labels), {"t": km.APGDT(km.Linf(1e-6), 1)}, verbose=2)
    assert "t, round 1 of 2: " in capsys.readouterr().out
    km.evaluate(threshold, FORMS["dataset"], FGSM, verbose=0)
    assert not capsys.readouterr().out


def test_shows_each_round_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    network, (images, labels) = conv_network(), images_and_labels()
    labels = np.argmax(network(images), axis=1).astype("int32")
    km.evaluate(network, (images, labels), {"t": km.APGDT(km.Linf(1e-6), 1)})
    assert f"\rt, round 2 of 2: {len(labels)} of {len(labels)} examples" in capsys.readouterr().out


def test_the_seed_decides(threshold):
    # The steps are too small to matter: the result depends on the random start, which differs in 20 equal batches.
    data, attacks = (np.full((20, 1), 0.45), np.zeros(20, int)), {"start": km.PGD(km.Linf(0.1), 1, step_size=1e-9)}

    def accuracy(**seed):
        return km.evaluate(threshold, data, attacks, batch_size=1, verbose=0, **seed)["start"]

    first, *others = (accuracy(seed=seed) for seed in range(3))
    assert accuracy(seed=1) == others[0] and accuracy() == first
    assert {first} < {first, *others}
    assert 0 < first < 1


# --- the table ---


def table(correct, **fields):
    """Returns a table of 1,000 examples of label 0, of which `correct` are classified correctly under PGD."""
    predictions = {"natural": np.zeros(1000, int), "pgd20": np.arange(1000) // correct, "square": np.zeros(1000, int)}
    seconds = {"natural": 0.5, "pgd20": 12.34, "square": 1234.5}
    return Table(np.zeros(1000, int), predictions, seconds, {"natural": 0, "pgd20": 20000, "square": None}, **fields)


def test_table_as_text():
    assert str(table(250)) == "\n".join(
        [
            "attack      accuracy  95% interval          seconds   gradients",
            "natural     100.00%    99.62% to 100.00%       0.5           0",
            "pgd20        25.00%    22.42% to  27.78%      12.3      20,000",
            "square      100.00%    99.62% to 100.00%    1234.5           -",
            "worst_case   25.00%    22.42% to  27.78%",
            "(1,000 examples)",
        ]
    )


@pytest.mark.parametrize(
    "accuracy, examples, low, high",
    [(0.5, 10, 0.236593, 0.763407), (0.0, 10, 0, 0.277533), (1.0, 400, 0.990488, 1), (0.1, 1000, 0.082909, 0.120152)],
)
def test_wilson_intervals(accuracy, examples, low, high):
    # Computed from the other form of Wilson's formula, (n p + z^2 / 2 -+ z sqrt(n p q + z^2 / 4)) / (n + z^2).
    np.testing.assert_allclose(wilson(accuracy, examples), (low, high), atol=1e-6)


def test_table_as_json():
    summary = json.loads(table(250).to_json())
    assert summary["accuracy"] == {"natural": 1.0, "pgd20": 0.25, "square": 1.0, "worst_case": 0.25}
    assert summary["interval"]["pgd20"] == list(wilson(0.25, 1000))
    assert (summary["examples"], summary["seconds"]["pgd20"], summary["gradients"]["pgd20"]) == (1000, 12.34, 20000)


def test_numpy_arguments_can_be_written_as_json(threshold):
    attacks = {"pgd": km.PGD(km.Linf(np.float32(0.125)), np.int64(2), step_size=np.float32(0.0625))}
    found = km.evaluate(threshold, (IMAGES, LABELS), attacks, class_names=np.array(["low", "high"]), verbose=0)
    summary = json.loads(found.to_json())
    assert summary["attacks"]["pgd"]["steps"] == 2 and summary["attacks"]["pgd"]["step_size"] == 0.0625
    assert list(summary["classes"]) == ["low", "high"]


def test_accuracy_of_each_class():
    labels, natural = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 1, 2, 0])
    attacked = Table(labels, {"natural": natural, "a": np.array([0, 1, 0, 0, 2, 2])}, {"natural": 1.0}, {"natural": 0})
    by_class = {
        "0": {"label": 0, "examples": 4, "natural": 0.75, "worst_case": 0.5},
        "2": {"label": 2, "examples": 2, "natural": 0.5, "worst_case": 0.5},
    }  # fmt: skip
    assert attacked.class_accuracy == by_class and attacked.worst_class == "2"  # ties go to the lower natural accuracy
    assert "Worst of 2 classes: 2, 50.00% in the worst case, 50.00% natural." in str(attacked)
    named = dataclasses.replace(attacked, class_names=("cat", "dog", "owl"), record={"precision": "float32"})
    assert list(named.class_accuracy) == ["cat", "owl"] and "(6 examples, float32)\nWorst of 2 classes: owl" in str(
        named
    )
    assert json.loads(named.to_json())["classes"]["cat"] == by_class["0"]
    twice = dataclasses.replace(attacked, class_names=("crane", "dog", "crane"))
    assert list(twice.class_accuracy) == ["crane (0)", "crane (2)"]


def test_a_curve_from_distances():
    right = dataclasses.replace(table(250), distances={"fmn": np.repeat(np.float32([0, 0.1, 0.2, np.inf]), 250)})
    epsilons, accuracies = right.curve("fmn")
    np.testing.assert_allclose(epsilons, [0, 0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(accuracies, [0.75, 0.5, 0.25])
    np.testing.assert_array_equal(right.curve("fmn", [0.05, 0.1, 0.15, 9])[1], [0.75, 0.5, 0.5, 0.25])
    with pytest.raises(ValueError, match=r"attack with distances \(here: fmn\). Received: 'pgd20'"):
        right.curve("pgd20")


def test_save_and_load(tmp_path):
    more = {"distances": {"pgd20": np.float32([np.inf] * 1000)}, "class_names": ("cat", "dog"), "record": {"seed": 1}}
    kept = table(250, stop_early=True, **more)
    kept.save(tmp_path / "outcomes")
    loaded = Table.load(tmp_path / "outcomes")
    np.testing.assert_array_equal(loaded.outcomes["pgd20"], kept.outcomes["pgd20"])
    assert loaded.to_json() == kept.to_json() and str(loaded) == str(kept)
    assert loaded.class_names == kept.class_names and loaded.record == {"seed": 1}
    np.testing.assert_array_equal(loaded.distances["pgd20"], kept.distances["pgd20"])
    assert list(loaded.predictions) == list(kept.predictions)


def test_side_by_side():
    assert side_by_side({"standard": table(250), "mart": table(500)}) == "\n".join(
        [
            "method    natural    pgd20   square  worst_case",
            "standard  100.00%   25.00%  100.00%      25.00%",
            "mart      100.00%   50.00%  100.00%      50.00%",
        ]
    )
    assert side_by_side({"at": table(250, stop_early=True)}).endswith("counts those too.")


def test_conclusion():
    apart, close = (
        conclusion({"standard": table(250), "mart": table(500)}),
        conclusion({"at": table(480), "mart": table(500)}),
    )
    assert apart == (
        "mart classifies 50.00% of 1,000 test images correctly under every attack (95% interval 46.91% to 53.09%), "
        "standard 25.00%.\nStronger attacks can only lower these figures."
    )
    assert "The intervals of mart and at overlap, so their order may be chance; stronger attacks can" in close
    assert conclusion({"at": table(480)}).count(".\n") == 1


# --- presets ---


@pytest.mark.parametrize("threat", [km.Linf(0.3), km.L2(0.5)], ids=repr)
def test_presets(threat):
    step = threat.epsilon / 10
    assert presets(["paper", "pgd7", "cw100"], threat) == {
        "fgsm": km.FGSM(threat),
        "pgd20": km.PGD(threat, 20, step_size=step),
        "cw": km.CW(threat, 30, step_size=step),
        "pgd7": km.PGD(threat, 7, step_size=2.5 * threat.epsilon / 7),
        "cw100": km.CW(threat, 100, step_size=step),
    }
    assert presets(["apgd", "apgd-t", "fab-t", "square", "autoattack"], threat) == {
        "apgd": km.APGDCE(threat),
        "apgd-t": km.APGDT(threat),
        "fab-t": km.FABT(threat),
        "square": km.Square(threat),
        "autoattack": km.AutoAttack(threat),
    }


def test_transfer_presets():
    source = conv_network()
    found = presets(["transfer-paper", "fgsm"], km.Linf(0.1), source)
    assert list(found) == ["transfer-fgsm", "transfer-pgd20", "transfer-cw", "fgsm"]
    assert found["transfer-pgd20"].source is source and found["transfer-pgd20"].attack == km.PGD(
        km.Linf(0.1), 20, step_size=0.1 * 0.1
    )
    with pytest.raises(ValueError, match=r"needs a source model .* Received: 'transfer-fgsm'"):
        presets(["transfer-fgsm"], km.Linf(0.1))


@pytest.mark.parametrize(
    "name, near", [("fsgm", "fgsm"), ("pdg20", "pgd20"), ("pgd0100", "pgd100"), ("autoatack", "autoattack")]
)
def test_an_unknown_preset(name, near):
    with pytest.raises(
        ValueError, match=f"`attacks` must be one of fgsm, .* Received: '{name}'. Did you mean '{near}'"
    ):
        presets([name], km.Linf(0.1))


# --- bad input ---

X, Y = images_and_labels()


@pytest.mark.parametrize(
    "data, attacks, message",
    [
        ((X, Y), {"natural": km.FGSM(km.Linf(0.1))}, "`attacks` must map names to attacks; natural, .*are reserved"),
        ((X, Y), [km.FGSM(km.Linf(0.1))], r"`attacks` must map names to attacks. Received: \[FGSM"),
        ((X, Y), {"aa/x": km.FGSM(km.Linf(0.1))}, "`attacks` must map .* slash, are reserved. Received: 'aa/x'"),
        ((X, Y), {"fgsm": km.FGSM}, "`attacks` must map names to attacks"),
        ((X[:0], Y[:0]), {}, "The data must not be empty"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).take(0), {}, "The data must not be empty"),
        (tf.data.Dataset.from_tensor_slices(X).batch(4), {}, "Received: no labels"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat(), {}, "Endless data need a `limit`"),
        (DATASET, {}, r"must come in batches of images. Received: a batch of shape \(1,\)"),
        ((X, Y), {1: km.FGSM(km.Linf(0.1))}, "`attacks` must map names to attacks; .* Received: 1: FGSM"),
        ((255 * np.round(X), Y), {}, r"Images must lie in \[0, 1\]\. Received: values from 0 to 255\..* by 255"),
        ((X, Y + 1), {}, r"Labels must lie in \[0, 3\)\. Received: labels from 1 to 3"),
        ((X, Y - 1), {}, r"Labels must lie in \[0, 3\)\. Received: labels from -1 to 1"),
        ((X, np.eye(4)[Y]), {}, r"Soft labels must be \[batch, 3\]"),
    ],
)
def test_data_that_cannot_be_evaluated(data, attacks, message):
    with pytest.raises(ValueError, match=message):
        km.evaluate(conv_network(), data, attacks, verbose=0)


def test_images_that_an_attack_cannot_take_are_refused_before_any_attack_runs(threshold):
    attacks = {"first": lambda *_, **__: pytest.fail("ran"), "autoattack": km.AutoAttack(km.Linf(0.1))}
    with pytest.raises(ValueError, match="Square needs images"):
        km.evaluate(threshold, (IMAGES, LABELS), attacks, verbose=0)


def test_the_seed_must_be_an_integer():
    with pytest.raises(ValueError, match=r"`seed` must be an integer. Received: seed=None"):
        km.evaluate(conv_network(), (X, Y), {}, seed=None, verbose=0)


@pytest.mark.parametrize("last", [keras.layers.Softmax, lambda: keras.layers.Dense(3, activation="sigmoid")])
def test_a_network_that_does_not_end_in_logits(last):
    network = keras.Sequential([conv_network(), last()])
    with pytest.raises(ValueError, match="`network` must return logits"):
        km.evaluate(network, (X, Y), {}, verbose=0)


@pytest.mark.parametrize("name", ["batch_size", "limit"])
def test_numbers_that_are_not_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer. Received: {name}=0"):
        km.evaluate(conv_network(), (X, Y), {}, **{name: 0}, verbose=0)


@pytest.mark.parametrize("threat", [km.Linf(0.0), km.L2(0.0)], ids=repr)
def test_an_epsilon_of_0_gives_the_natural_accuracy(threat):
    shape = (5, 5, 1)
    network = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(4)])
    images = np.random.default_rng(0).random((12, *shape), "float32")
    labels = np.argmax(network(images), axis=1)
    labels[:3] = (labels[:3] + 1) % 4
    attacks = presets(["pgd20", "apgd"], threat)
    attacks["square"] = km.Square(threat, 3)
    attacks["autoattack"] = km.AutoAttack(threat, ["apgd-ce", "fab-t"])
    table = km.evaluate(network, (images, labels), attacks, verbose=0)
    assert set(table.accuracy.values()) == {9 / 12}
