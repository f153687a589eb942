"""FMN: against exact distances on linear networks, and independence of epsilon.

The contract of every attack is in test_autoattack.py.
"""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import conv_network, linear_network
from keras import ops
from test_autoattack import both, dividing, exact_distance, linear_case

import keras_mart as km
from keras_mart.attacks import base
from keras_mart.evaluation.presets import presets

WIDEST = {km.Linf: km.Linf(1.0), km.L2: km.L2(12**0.5)}  # for images of 12 values
LINF = km.Linf(0.1)


def distance_found(attack, network, images, labels):
    """Returns the [batch] distance of the images found, infinite for images that are classified correctly."""
    found = attack(network, images, labels)
    fooled = np.argmax(network(found), axis=1) != labels
    return np.where(fooled, attack.threat.distance(found, images), np.inf)


# With 4 classes and limits the steepest class is not always the nearest: one of 22 examples is a fifth farther.
@pytest.mark.parametrize("classes, interior", [(2, True), (2, False), (4, True)])
@both
def test_finds_the_nearest_adversarial_image(norm, classes, interior):
    network, images, labels = linear_case(classes, interior)
    expected = exact_distance(norm(0), network, images, labels)
    found = distance_found(km.FMN(WIDEST[norm]), network, images, labels)
    assert np.all(found >= (1 - 1e-4) * expected) and np.all(found <= 1.005 * expected)


@both
def test_moves_along_the_limits(norm):
    """The margin rises most along values that cannot move: the gradient of 8 of 12 points out of [0, 1]."""
    weights = np.array([[-1.0, 1.0]] * 8 + [[0.1, -0.1], [-0.2, 0.2], [0.3, -0.3], [-0.1, 0.1]])
    images = np.array([[1.0] * 8 + [0.5, 0.4, 0.6, 0.5], [1.0] * 8 + [0.5, 0.4, 0.3, 0.7]], "float32")
    network = linear_network(weights, [16.1, 0.0])
    labels = np.zeros(2, int)
    expected = exact_distance(norm(0), network, images, labels)
    assert np.all(np.isfinite(expected)) and np.all(expected > 0.05)
    found = distance_found(km.FMN(WIDEST[norm]), network, images, labels)
    assert np.all(found >= (1 - 1e-4) * expected) and np.all(found <= 1.005 * expected)


@both
def test_epsilon_decides_only_what_is_returned(norm):
    network, images, labels = linear_case(2, False)
    attack = km.FMN(WIDEST[norm], 20)
    nearest = attack(network, images, labels)
    np.testing.assert_array_equal(nearest[:2], images[:2])  # misclassified from the start
    distances = np.asarray(attack.threat.distance(nearest, images))
    threat = norm(dividing(distances))
    found = dataclasses.replace(attack, threat=threat)(network, images, labels)
    within = (distances <= threat.epsilon)[:, None]
    np.testing.assert_array_equal(found, np.where(within, nearest, images))


@both
def test_one_run_gives_the_accuracy_at_every_epsilon(norm):
    network, images, labels = linear_case(4, True)
    every = np.asarray(norm(0).distance(km.FMN(WIDEST[norm], 20)(network, images, labels), images))
    epsilon = dividing(every)
    table = km.evaluate(network, (images, labels), {"fmn": km.FMN(norm(epsilon), 20)}, verbose=0)
    np.testing.assert_allclose(table.distances["fmn"], every, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(table.outcomes["fmn"], every > epsilon)
    assert table.curve("fmn", [epsilon])[1] == [table["fmn"]] and table.gradients["fmn"] == 20 * (len(images) - 2)


@both
def test_one_step_counts_and_no_seed_matters(norm):
    network, images, labels = linear_case(2, True)
    attack = km.FMN(WIDEST[norm], 1)
    found = attack(network, images, labels, seed=1)
    assert np.all(np.argmax(network(found), axis=1) != labels)
    np.testing.assert_array_equal(attack(network, images, labels, seed=2), found)


def images_met(attack, network, images, labels):
    """Returns ([batch, ...] images that the attack returns, [times, batch, ...] all images that it tries)."""
    met = []

    def logits(candidates):
        met.append(candidates.numpy())
        return network(candidates)

    return attack.perturb(logits, ops.convert_to_tensor(images), ops.convert_to_tensor(labels, "int32"), None), met


@both
def test_returns_the_nearest_of_those_met(norm):
    network, images, labels = linear_case(4, False)
    attack = km.FMN(WIDEST[norm], 8, gamma=0.5)
    found, met = images_met(attack, network, images, labels)
    fooled = np.array([np.argmax(network(each), axis=1) != labels for each in met])
    away = np.where(fooled, [attack.threat.distance(each, images) for each in met], np.inf)
    assert np.any(away[-1] > np.min(away, axis=0))  # the last image is not always the nearest
    nearest = np.array(met)[np.argmin(away, axis=0), np.arange(24)]
    beyond = np.clip(images + 1.001 * (nearest - images), 0, 1)
    np.testing.assert_allclose(found, np.where(np.min(away, axis=0)[:, None] < np.inf, beyond, images), atol=1e-6)
    assert len(met) == attack.gradients + 1  # no gradient for the last


@both
def test_a_network_that_never_changes_its_mind(norm):
    network, images = linear_network(np.zeros((12, 3)), [500.0, 0.0, 0.0]), linear_case(2, False)[1]
    found, met = images_met(km.FMN(WIDEST[norm], 5), network, images, np.zeros(24))
    np.testing.assert_array_equal(found, images)
    assert np.all(np.isfinite(met))


def test_values():
    attack = km.FMN(LINF, 7, step_size=0.5, gamma=0.1)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(attack))
    assert again == attack and hash(again) == hash(attack) != hash(km.FMN(LINF, 7))
    assert repr(attack) == "FMN(threat=Linf(epsilon=0.1), steps=7, step_size=0.5, gamma=0.1)"
    assert attack.gradients == 7 and attack.minimises and not km.PGD(LINF).minimises
    assert not isinstance(attack, base.Climb | base.Rounds)


def test_presets():
    expected = {"fmn": km.FMN(LINF, 100), "fmn20": km.FMN(LINF, 20), "fmn30": km.FMN(LINF, 30)}
    assert presets(["fmn", "fmn20", "fmn30"], LINF) == expected
    with pytest.raises(ValueError, match=r"must be one of fgsm, .* Received: 'fmn0'\. Did you mean 'fmn'\?"):
        presets(["fmn0"], LINF)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: km.FMN(LINF, 0), "`steps` must be a positive integer. Received: steps=0"),
        (lambda: km.FMN(LINF, step_size=0), "`step_size` must be positive. Received: step_size=0"),
        (lambda: km.FMN(LINF, step_size=np.inf), "`step_size` must be positive. Received: step_size=inf"),
        (lambda: km.FMN(LINF, gamma=0), r"`gamma` must lie in \[0.001, 1\). Received: gamma=0"),
        (lambda: km.FMN(LINF, gamma=1.0), r"`gamma` must lie in \[0.001, 1\). Received: gamma=1.0"),
        (lambda: km.FMN(LINF, gamma=np.nan), r"`gamma` must lie in \[0.001, 1\). Received: gamma=nan"),
        (lambda: km.FMN(0.1), "`threat` must be a ball such as .* Received: 0.1"),
        (lambda: km.AT(conv_network(), km.FMN(LINF)), "`attack` must be able to climb .* Received: attack=FMN"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
