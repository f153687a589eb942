"""keras_mart.harden: makes a trained network robust with one call."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mart as km

FGSM = km.FGSM(km.Linf(0.1))


@pytest.fixture(scope="module")
def data():
    images, labels = next(iter(km.datasets.load("digits", "train", batch_size=256, shuffle=False)))
    return np.asarray(images), np.asarray(labels)


@pytest.fixture(scope="module")
def trained(data):
    """A network for images of 16x16 in [0, 255] that ends in a softmax; its first layer is frozen."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            layers.Input((16, 16, 1)),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.BatchNormalization(momentum=0.95),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(tf.image.resize(data[0], (16, 16)) * 255, data[1], epochs=10, verbose=0)
    network.layers[0].trainable = False
    return network


def test_hardens_a_copy_of_any_classifier(data, trained):
    before = [np.array(each) for each in trained.weights]
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(64)
    hardened = km.harden(
        trained, dataset, data, threat=km.Linf(0.15), epochs=6, preprocessing=255, learning_rate=0.05, seed=1, verbose=0
    )
    for now, old in zip(trained.weights, before, strict=True):
        np.testing.assert_array_equal(now, old)
    assert hardened.before["natural"] > 0.9
    assert hardened.after["robust"] > hardened.before["robust"] + 0.1
    best = max(hardened.history["val_adversarial_accuracy"])
    assert hardened.after["robust"] == pytest.approx(best, abs=0.02)  # the best epoch's weights
    kernel = next(each for each in hardened.model.network.weights if tuple(each.shape) == (3, 3, 1, 8))
    np.testing.assert_array_equal(kernel, trained.layers[0].kernel)
    text = str(hardened)
    assert "natural" in text and "robust" in text and "256 examples" in text
    lines = ("last activation is removed", "TRADES", "images of 8x8", "rate 0 to 0.05", "multiplied by 255", "momentum")
    for said in lines:
        assert said in text


def test_a_network_that_needs_no_change(data):
    network = keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    hardened = km.harden(network, data, data, threat=km.Linf(0.1), epochs=1, verbose=0)
    assert "not changed" in str(hardened)
    assert not np.array_equal(hardened.model.network.layers[-1].kernel, network.layers[-1].kernel)


def test_trains_under_the_strategy_of_the_network(data, two_replicas):
    with two_replicas.scope():
        network = keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    cheap = {"threat": km.Linf(0.1), "method": "at"} | dict.fromkeys(["attack", "validation_attack"], FGSM)
    hardened = km.harden(network, data, data, **cheap, epochs=2, batch_size=100, verbose=0)
    assert hardened.model.distribute_strategy is two_replicas
    assert int(hardened.model.step.numpy()) == 6  # regardless of which epoch was the best


def test_every_setting_can_be_given(data):
    network = keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    attack = km.PGD(km.L2(0.5), steps=1)
    hardened = km.harden(
        network, data, data, threat=km.L2(0.5), method=km.MART, epochs=1, test=(data[0][:32], data[1][:32]),
        attack=attack, validation_attack=km.FGSM(km.L2(0.5)), optimizer="adam", weight_average=None,
        batch_size=100, verbose=0, beta=2.0, weight_perturbation=km.AWP(0.01), preprocessing=255,
    )  # fmt: skip
    model = hardened.model
    assert (type(model), model.attack, model.beta, model.weight_average) == (km.MART, attack, 2.0, None)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert int(model.step.numpy()) == 3
    assert hardened.after.examples == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "standard"}, "must be one of at, alp, clp, trades, mma, mart"),
        ({"method": "trads"}, "Did you mean 'trades'"),
        ({"method": km.Standard}, "must train against an adversary"),
        ({"optimizer": "adam", "learning_rate": 0.1}, "set the rate of `optimizer` itself"),
        ({"validation_attack": km.AutoAttack(km.Linf(0.1))}, "`validation_attack` must be an attack"),
        ({"train": (np.zeros([4, 8, 8, 1]), np.zeros(4, int), np.ones(4))}, "3 arrays"),
        ({"method": "mma"}, "max_epsilon"),
        ({"train": tf.data.Dataset.from_generator(lambda: [], tf.float32)}, "number of batches"),
        ({"network": keras.Sequential([layers.Flatten(), layers.Dense(10)])}, "must be built"),
        ({"network": keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten()])}, "must have trainable weights"),
    ],
)
def test_invalid_arguments(data, trained, arguments, message):
    given = {"network": trained, "train": data, "validation": data, "threat": km.Linf(0.1), **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        km.harden(given.pop("network"), given.pop("train"), given.pop("validation"), **given)
