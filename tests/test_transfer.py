"""Transfer, with examples of another network, and Noise, without a network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import conv_network, images_and_labels, linear_network
from keras import ops

import keras_mart as km

X, Y = images_and_labels()
THREAT = km.Linf(0.2)
PGD = km.PGD(THREAT, 2)


def source(classes=3, shape=X.shape[1:]):
    random = np.random.default_rng(0)
    return linear_network(random.normal(size=(np.prod(shape), classes)), np.zeros(classes), shape)


@pytest.fixture(scope="module")
def network():
    return conv_network()


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: km.AT(network, attack=PGD)])
def test_examples_of_the_source_are_evaluated_on_the_target(wrap, network):
    made_of = source()
    transfer = km.Transfer(wrap(made_of), PGD)
    expected = PGD(made_of, X, Y, seed=1)
    np.testing.assert_array_equal(transfer(network, X, Y, seed=1), expected)
    assert np.any(np.abs(PGD(network, X, Y, seed=1) - expected) > 0.01)

    fixed = km.Transfer(made_of, km.FGSM(THREAT))  # deterministic, so that the examples are known
    on_target = np.argmax(network(km.FGSM(THREAT)(made_of, X, Y)), axis=1)
    table = km.evaluate(network, (X, Y), {"transfer": fixed}, verbose=0)
    assert table["transfer"] == np.mean(on_target == Y)


def test_an_attack_in_rounds_skips_what_the_source_misclassifies(network):
    made_of, attack = source(), km.FABT(km.Linf(1.0), 5)
    predicted = np.argmax(made_of(X), axis=1)
    found = km.Transfer(made_of, attack)(network, X, Y)
    changed = np.any(found != X, axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, predicted == Y)
    assert np.all(np.argmax(made_of(found), axis=1) != Y)


def test_two_transfers_are_not_the_same():
    first, second = source(), source()
    transfer = km.Transfer(first, PGD)
    assert transfer == transfer and hash(transfer) == hash(transfer)
    assert transfer != km.Transfer(second, PGD) and transfer != km.Transfer(first, km.FGSM(THREAT))
    assert repr(transfer) == f"Transfer(source={first.name}, attack={PGD!r})"
    assert transfer.threat == THREAT and transfer.gradients == 2


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: km.Transfer(source(), "pgd"), "`attack` must be an attack such as .* Received: 'pgd'"),
        (lambda: km.Transfer(source(), km.PGD), "`attack` must be an attack such as .* Received: <class"),
        (lambda: km.Transfer("resnet18", PGD), "must be a keras.Model. Received: 'resnet18'"),
        (lambda: km.Transfer(keras.Sequential([source(), keras.layers.Softmax()]), PGD), "must return logits"),
        (lambda: km.Transfer(source(4), PGD)(conv_network(), X, Y), "as many classes .*, 3. Received: 4"),
        (lambda: km.Transfer(source(3, (5, 5, 1)), PGD)(conv_network(), X, Y), r"\(None, 5, 5, 1\).*source .*8, 6, 6"),
        (lambda: km.AT(conv_network(), attack=km.Transfer(source(), PGD)), "able to climb the objective of AT"),
        (lambda: keras.saving.serialize_keras_object(km.Transfer(source(), PGD)), "cannot be serialised"),
        (lambda: km.Noise(THREAT, 0), "`samples` must be a positive integer. Received: samples=0"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- Noise ---


@pytest.mark.parametrize("threat", [km.Linf(0.2), km.L2(0.2)], ids=repr)
def test_more_noise_is_worse(threat):
    images, slope = tf.fill([2000, 3], 0.5), np.array([1.0, -2.0, 0.5], "float32")

    def objective(candidates):
        return ops.sum(slope * candidates, axis=1)

    one, many = (km.Noise(threat, samples).maximise(objective, images, seed=1) for samples in (1, 50))
    assert np.all(threat.distance(many, images) <= 0.2 + 1e-6)
    assert np.mean(objective(many) > objective(one)) > 0.9
    most = 0.2 * np.linalg.norm(slope, ord=1 if isinstance(threat, km.Linf) else 2)
    gained = np.mean(objective(many) - objective(images)) / most
    assert 0.6 < gained < 1 and abs(np.mean(objective(one) - objective(images))) < 0.1 * most
    # A different score selects different ones of the same points.
    least = km.Noise(threat, 50).maximise(objective, images, seed=1, score=lambda candidates: -objective(candidates))
    assert np.mean(objective(least) - objective(images)) < -0.6 * most
    epsilon = np.linspace(0, 0.4, 2000, dtype="float32")
    each = threat.distance(km.Noise(threat, 2).maximise(objective, images, epsilon, seed=1), images)
    assert np.all(each <= epsilon + 1e-6) and np.max(each) > 0.25


def test_noise_trains_and_prefers_a_misclassification():
    model = km.AT(source(), attack=km.Noise(THREAT, 2))
    model.compile(optimizer="sgd")
    history = model.fit(X, Y, verbose=0).history
    assert np.isfinite(history["loss"][0]) and "adversarial_accuracy" in history
    # One value, just below the boundary to class 1: of 50 points on both sides, one beyond the boundary is returned.
    network = linear_network([[-9.0, 0.0]], [4.6, 0.0])
    images = np.full((20, 1), 0.5, "float32")
    assert np.all(km.Noise(km.Linf(0.1), 50)(network, images, [0] * 20, seed=1) > 0.51)
