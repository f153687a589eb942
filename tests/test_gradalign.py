"""GradAlign: the gradient of a step, second derivatives included, against finite differences in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from agreement import replace_random_numbers
from conftest import images_and_labels

import keras_mart as km
from keras_mart import layers

X, Y = images_and_labels(8)
EPSILON, BETA, STEP, VARIANCE = 0.1, 0.7, 1e-5, 1e-3


def network(normalisation):
    images = keras.Input(X.shape[1:])
    features = keras.layers.Conv2D(4, 3, use_bias=False)(images)  # a bias's gradient would be only rounding
    features = keras.layers.Activation("softplus")(normalisation(epsilon=VARIANCE)(features))
    return keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(features)))


def logits(weights, images):
    """Computes the network in training mode, in float64."""
    kernel, gamma, beta, dense, bias = weights
    features = tf.nn.conv2d(images, kernel, 1, "VALID")
    mean, variance = tf.nn.moments(features, (0, 1, 2))
    features = tf.nn.softplus(gamma * (features - mean) / tf.sqrt(variance + VARIANCE) + beta)
    return tf.reshape(features, (len(X), -1)) @ dense + bias


def image_gradient(weights, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = tf.nn.sparse_softmax_cross_entropy_with_logits(Y, logits(weights, images))
    return tf.reshape(tape.gradient(value, images), (len(X), -1))


def loss(weights, adversarial, nearby, held):
    """Returns the mean loss; the gradient at x is `held` fixed."""
    value = tf.nn.sparse_softmax_cross_entropy_with_logits(Y, logits(weights, adversarial))
    gradient = image_gradient(weights, nearby)
    cosine = tf.reduce_sum(held * gradient, 1) / tf.norm(held, axis=1) / tf.norm(gradient, axis=1)
    return float(tf.reduce_mean(value + BETA * (1 - cosine)))


@pytest.mark.parametrize("normalisation", [keras.layers.BatchNormalization, layers.BatchNormalization])
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_descends_the_loss(normalisation, jit_compile, monkeypatch):
    replace_random_numbers(monkeypatch.setattr)
    keras.utils.set_random_seed(0)
    model = km.GradAlign(network(normalisation), km.FGSM(km.Linf(EPSILON)), beta=BETA, seed=0)
    model.compile(keras.optimizers.SGD(1.0), jit_compile=jit_compile)
    x = tf.constant(X)
    adversarial, _ = model.perturb(x, tf.constant(Y), model._seed(0, model.step))
    nearby = model.attack.threat.sample(x, None)
    before = [np.array(each, "float64") for each in model.trainable_variables]
    reported = model.fit(X, Y, batch_size=8, shuffle=False, verbose=0).history["loss"][0]
    gradient = [old - new for old, new in zip(before, model.trainable_variables, strict=True)]

    x, adversarial, nearby = (tf.cast(each, "float64") for each in (x, adversarial, nearby))
    held = image_gradient(before, x)
    assert reported == pytest.approx(loss(before, adversarial, nearby, held), rel=1e-5)
    random = np.random.default_rng(0)
    for number, each in enumerate(before):
        direction = random.normal(size=each.shape)
        moved = [[*before[:number], each + sign * STEP * direction, *before[number + 1 :]] for sign in (1, -1)]
        forward, backward = (loss(weights, adversarial, nearby, held) for weights in moved)
        slope = (forward - backward) / (2 * STEP)
        assert np.sum(gradient[number] * direction) == pytest.approx(slope, rel=1e-3, abs=1e-5), number
