"""DKL's class means: computed in one epoch, used in the next."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import Plain
from test_methods import ATTACK, CLASSES, X, Y, fit, network

import keras_mart as km
from keras_mart import losses

UNIFORM = np.full((CLASSES, CLASSES), 1 / CLASSES)


def still(wrapped, **arguments):
    """Returns a model that does not change: its learning rate is 0."""
    model = km.DKL(wrapped, ATTACK, seed=0)
    model.compile(keras.optimizers.SGD(0.0), **arguments)
    return model


def means(model, images=X, labels=Y):
    probabilities = np.array(keras.ops.softmax(model(images) / 4))
    return np.stack([probabilities[labels == label].mean(axis=0) for label in range(CLASSES)])


def test_means_are_those_of_the_previous_epoch(tmp_path):
    model = still(network(batch_norm=False))
    fit("dkl", model)
    np.testing.assert_allclose(model.class_means, UNIFORM, rtol=1e-6)
    model.save(tmp_path / "run.keras")
    model = keras.saving.load_model(tmp_path / "run.keras")
    fit("dkl", model, initial_epoch=1, epochs=2)
    np.testing.assert_allclose(model.class_means, means(model), rtol=1e-5)
    np.testing.assert_allclose(np.sum(model.class_sums, axis=1), np.bincount(Y), rtol=1e-5)  # of this epoch only
    assert not np.allclose(means(model), UNIFORM, atol=0.01)


def test_means_weight_the_loss_from_the_first_step_of_an_epoch():
    model = still(network(batch_norm=False))
    fit("dkl", model)
    random = np.random.default_rng(0)
    outputs = km.Outputs(*tf.constant(random.normal(size=(2, len(X), CLASSES)), "float32"), 0.1)
    for epoch, expected in ((0, UNIFORM), (1, means(model))):
        model.epoch.assign(epoch)
        expected = losses.dkl(Y, *outputs[:2], expected.astype("float32"), 4.0, 20.0)
        np.testing.assert_allclose(model.training_loss(Y, outputs), expected, rtol=1e-4)


def test_a_class_without_examples_keeps_its_mean():
    model = still(network(batch_norm=False))
    met = Y != 1
    fit("dkl", model, X[met], Y[met])
    fit("dkl", model, initial_epoch=1, epochs=2)
    expected = means(model)
    expected[1] = UNIFORM[1]
    np.testing.assert_allclose(model.class_means, expected, rtol=1e-5)


def test_padding_is_not_counted_and_soft_labels_count_by_their_shares():
    model = still(network(batch_norm=False))
    shares = np.random.default_rng(0).dirichlet(np.ones(CLASSES), len(X)).astype("float32")
    real = np.float32(np.arange(len(X)) % 2)
    outputs = km.Outputs(tf.constant(model(X)), None, 0.1)
    model.remember(tf.constant(shares), outputs, tf.constant(real))
    expected = (shares * real[:, None]).T @ np.array(keras.ops.softmax(outputs.natural / 4))
    np.testing.assert_allclose(model.class_sums, expected, rtol=1e-5)


@pytest.mark.parametrize("called", [False, True])
def test_a_subclassed_network_gets_its_class_means_when_it_is_built(called):
    wrapped = Plain()
    if called:
        wrapped(X)
    model = still(wrapped, run_eagerly=True)
    fit("dkl", model)
    assert model.class_sums.shape == (CLASSES, CLASSES)
