"""Tests of `diagnose`: ordinary networks pass, networks that hide their gradients are flagged."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mart as km
from keras_mart.evaluation import false_robustness

THREAT = km.Linf(0.15)
CHECKS = [
    "deterministic", "looks_like_logits", "gradients_do_not_vanish", "falls_with_epsilon", "more_steps_do_not_help",
    "restarts_barely_matter", "noise_is_weaker", "stronger_than_square", "stronger_than_transfer",
]  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return [
        tuple(np.concatenate(part) for part in zip(*km.datasets.load("digits", split).as_numpy_iterator(), strict=True))
        for split in ("train", "test")
    ]


def trained(digits, method, epochs, **arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, activation="relu")(inputs)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
    network = keras.Model(inputs, keras.layers.Dense(10)(x))
    model = method(network, seed=0, **arguments)
    model.compile(keras.optimizers.Adam(3e-3))
    model.fit(*digits[0], batch_size=64, epochs=epochs, verbose=0)
    return network


@pytest.fixture(scope="module")
def plain(digits):
    return trained(digits, km.Standard, epochs=8)


@pytest.fixture(scope="module")
def robust(digits):
    return trained(digits, km.AT, epochs=8, attack=km.PGD(THREAT, 5, step_size=0.05))


def diagnose(network, digits, **options):
    return km.diagnose(network, digits[1], THREAT, limit=100, verbose=0, **options)


def on_top_of(network, before=lambda images: images, after=lambda logits: logits):
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, after(network(before(inputs))))


@pytest.fixture(scope="module")
def found(plain, robust, digits):
    return diagnose(plain, digits, source=robust)


def test_a_plainly_trained_network_passes(found):
    assert found.passed, str(found)
    assert [check.name for check in found.checks] == CHECKS
    assert {check.verdict for check in found.checks} == {"passed"}
    assert found.examples == 100


def test_an_adversarially_trained_network_passes(robust, digits):
    found = diagnose(km.Standard(robust), digits)
    assert found.passed, str(found)
    assert found["stronger_than_transfer"].verdict == "skipped"
    assert "no source model was given" in found["stronger_than_transfer"].figure
    epsilons, accuracies = found.curve["epsilon"], found.curve["accuracy"]
    assert epsilons[0] == 0 and THREAT.epsilon in epsilons and epsilons[-1] == 1 and sorted(epsilons) == epsilons
    assert accuracies[0] > 0.8 and accuracies[epsilons.index(THREAT.epsilon)] > 0.4 and accuracies[-1] < 0.05


def test_quantised_inputs_are_flagged(plain, digits):
    # Quantisation removes the gradient; the network without it is a source whose gradient fits.
    network = on_top_of(plain, before=lambda images: keras.ops.round(images * 4) / 4)
    found = diagnose(network, digits, source=plain)
    assert {"gradients_do_not_vanish", "falls_with_epsilon"} <= set(found.flagged)
    assert {"stronger_than_square", "stronger_than_transfer"} <= set(found.flagged)
    assert "100.0% of the examples" in found["gradients_do_not_vanish"].figure
    assert not found.passed and "flagged  gradients_do_not_vanish" in str(found)


def test_scaled_logits_are_flagged(plain, digits):
    found = diagnose(on_top_of(plain, after=lambda logits: 1e4 * logits), digits)
    assert {"looks_like_logits", "gradients_do_not_vanish", "falls_with_epsilon"} <= set(found.flagged)


def test_gradients_that_underflow_only_in_float16_are_not_flagged():
    # At a margin of about 25 gradients are 1e-11; the attacks scale them up.
    dense = keras.layers.Dense(2, dtype="mixed_float16")
    network = keras.Sequential([keras.Input((4,)), dense])
    dense.set_weights([np.tile([[25.0, -25.0]], (4, 1)), np.array([-50.0, 50.0])])
    images = np.random.default_rng(0).choice([0.3, 0.7], size=(40, 1)).astype("float32") * np.ones((1, 4), "float32")
    found = km.diagnose(network, (images, (images[:, 0] < 0.5).astype(int)), km.Linf(0.3), verbose=0)
    assert found["looks_like_logits"].verdict == found["gradients_do_not_vanish"].verdict == "passed"


def test_text_and_json(found):
    record = json.loads(found.to_json())
    assert record["threat"] == {"norm": "Linf", "epsilon": 0.15} and record["examples"] == 100
    assert [check["name"] for check in record["checks"]] == CHECKS
    assert record["curve"]["accuracy"] == found.curve["accuracy"]
    assert str(found).splitlines()[0] == "Linf(epsilon=0.15), 100 examples"


def test_random_outputs_are_flagged_and_flat_inputs_skip_square(monkeypatch):
    for name, few in {"FEW_STEPS": 1, "STEPS": 2, "MANY_STEPS": 3, "RESTARTS": 2}.items():
        monkeypatch.setattr(false_robustness, name, few)
    seeds = keras.random.SeedGenerator(0)

    def noisy(images):
        return images + keras.random.normal(keras.ops.shape(images), stddev=0.1, seed=seeds)

    network = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(noisy), keras.layers.Dense(3)])
    images = np.random.default_rng(0).random((30, 4), "float32")
    data = tf.data.Dataset.from_tensor_slices((images, np.argmax(network(images), axis=1))).batch(8)
    found = km.diagnose(network, data, km.L2(0.2), limit=20, verbose=0)
    assert "deterministic" in found.flagged
    assert found["stronger_than_square"].verdict == "skipped" and found.examples == 20
    assert found.curve["epsilon"][-1] == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"threat": 0.1}, "`threat` must be a ball of positive epsilon, .* Received: 0.1"),
        ({"threat": km.Linf(0)}, "`threat` must be a ball of positive epsilon"),
        ({"data": (np.zeros((0, 8, 8, 1)), np.zeros(0, int))}, "The data must not be empty"),
        ({"limit": 0}, "`limit` must be a positive integer"),
        ({"data": (np.zeros((3, 8, 8, 1)), np.full(3, 10))}, r"Labels must lie in \[0, 10\)"),
        ({"source": keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(7)])},
         "source model must have as many classes .* 10. Received: 7"),
        ({"source": keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])},
         r"Images must have shape \(None, 9, 9, 1\), the input shape of the source model"),
    ],
)  # fmt: skip
def test_invalid_arguments(change, message, plain, digits):
    arguments = {"data": digits[1], "threat": THREAT, "verbose": 0, "limit": 5} | change
    with pytest.raises(ValueError, match=message):
        km.diagnose(plain, **arguments)
