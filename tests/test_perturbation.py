"""Adversarial weight perturbation: its formula, its warm-up, and that every method supports it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import test_training_step as step
from agreement import replace_random_numbers
from test_methods import KINDS, X, Y, build, fit, network, same_weights

import keras_mart as km

GAMMA = 0.05


def perturbed(case, perturbation=None, wrapped=None, **compile_arguments):
    """Returns a compiled method, created from its config, with a perturbation; without one for `None`."""
    model = build(case, wrapped, compiled=False)
    config = model.get_config() | {"weight_perturbation": keras.saving.serialize_keras_object(perturbation)}
    again = type(model).from_config(config)
    again.set_weights(model.get_weights())
    again.compile(km.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3), **compile_arguments)
    return again


def reference(method, weights, x, y):
    """Returns loss, parameters and statistics after a step of the paper's algorithm (or ours, if it differs)."""
    _, attacked, _ = step.reference_steps(method, weights, x, y, 1)
    slopes_of = step.mart_slopes if method == "mart" else step.trades_slopes

    def loss_and_gradients(network):
        natural, natural_cache = network.forward(x, True)
        adversarial, adversarial_cache = network.forward(attacked, True)
        loss, at_natural, at_adversarial = slopes_of(y, step.softmax(natural), step.softmax(adversarial))
        one = network.backward(at_natural / len(y), natural_cache)[0]
        two = network.backward(at_adversarial / len(y), adversarial_cache)[0]
        return loss.mean(), [left + right for left, right in zip(one, two, strict=True)]

    gradients = loss_and_gradients(step.Reference(weights))[1]
    moved = step.Reference(weights)
    for number in (0, 3):  # the kernels
        kernel, gradient = moved.parameters()[number], gradients[number]
        kernel += GAMMA * np.linalg.norm(kernel) * gradient / np.linalg.norm(gradient)
    loss, gradients = loss_and_gradients(moved)
    before = step.Reference(weights).parameters()
    after = [w - step.RATE * (g + step.DECAY * w) for w, g in zip(before, gradients, strict=True)]
    return loss, after, moved


@pytest.mark.parametrize("method", [km.MART, km.TRADES])
def test_a_step_agrees_with_float64(method, monkeypatch):
    random = np.random.default_rng(0)
    x = random.uniform(size=(step.BATCH, step.SIDE, step.SIDE, 1))
    y = random.integers(step.CLASSES, size=step.BATCH)
    replace_random_numbers(monkeypatch.setattr)
    wrapped = step.build_network()
    loss, parameters, moved = reference(method.__name__.lower(), wrapped.get_weights(), x, y)

    attack = km.PGD(km.Linf(step.EPSILON), step.STEPS, step_size=step.STEP)
    model = method(wrapped, attack, beta=step.BETA, seed=0, weight_perturbation=km.AWP(GAMMA))
    model.compile(km.optimizers.SGD(step.RATE, momentum=step.MOMENTUM, weight_decay=step.DECAY))
    got = model.fit(x, y, batch_size=step.BATCH, verbose=0, shuffle=False).history["loss"]
    norm = wrapped.layers[1]
    errors = [step.relative_error(got, [loss])]
    errors += [step.relative_error(*pair) for pair in zip(wrapped.trainable_variables, parameters, strict=True)]
    # Only the pass at w + v updates the statistics, once for each batch.
    errors += [step.relative_error(norm.moving_mean, moved.mean)]
    errors += [step.relative_error(norm.moving_variance, moved.variance)]
    print(method.__name__, [f"{error:.1e}" for error in errors])
    assert max(errors) < 5e-6, errors


def test_perturbations_of_each_weight():
    kernel, still, bias = (keras.Variable(value) for value in ([[3.0, 0.0], [0.0, 4.0]], np.ones((2, 2)), [1.0, 1.0]))
    gradients = [tf.constant([[0.0, 2.0], [0.0, 0.0]]), tf.zeros((2, 2)), tf.ones(2)]
    found = km.AWP(0.1).perturbations([kernel, still, bias], dict(enumerate(gradients)))
    np.testing.assert_allclose(found[0], [[0, 0.1 * 5], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(found[1], np.zeros((2, 2)))  # no direction without a gradient
    assert found.keys() == {0, 1}
    for wrong in (np.nan, np.inf):
        found = km.AWP(0.1).perturbations([kernel], {0: tf.fill((2, 2), wrong)})
        np.testing.assert_array_equal(found[0], np.zeros((2, 2)))
    assert km.AWP(0.1).perturbations([bias], {0: tf.ones(2)}) == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_does_not_overflow(dtype):
    kernel = keras.Variable(np.full((4, 4), 1e-4), dtype=dtype)
    gradient = tf.cast(tf.fill((4, 4), 3e4), dtype)  # in float16 its square overflows, and the kernel's is 0
    found = km.AWP(0.5).perturbations([kernel], {0: gradient})[0]
    assert found.dtype == dtype
    np.testing.assert_allclose(keras.ops.cast(found, "float32"), np.full((4, 4), 0.5e-4), rtol=0.02)


def test_the_warmup_counts_epochs():
    plain, warming = perturbed("mart"), perturbed("mart", km.AWP(GAMMA, warmup=1))
    assert fit("mart", plain) == fit("mart", warming)  # three steps
    same_weights(plain, warming)
    after = [fit("mart", model, initial_epoch=1, epochs=2)["loss"][0] for model in (plain, warming)]
    assert abs(after[0] - after[1]) > 1e-3


@pytest.mark.parametrize("case", KINDS)
def test_every_method_supports_it(case):
    models = [perturbed(case, each, run_eagerly=True) for each in (None, km.AWP(GAMMA))]
    assert [model.weight_perturbation for model in models] == [None, km.AWP(GAMMA)]
    plain, climbed = (fit(case, model, X[:8], Y[:8])["loss"][0] for model in models)
    assert plain + 1e-3 < climbed  # the loss is computed at the perturbed weights


def test_two_replicas_equal_one_device(two_replicas, monkeypatch):
    replace_random_numbers(monkeypatch.setattr)

    def run(strategy, **how):
        with strategy.scope():
            model = perturbed("mart", km.AWP(GAMMA, warmup=1), network(batch_norm=False, regularizer="l2"), **how)
        # The last batch has one example: one replica has none.
        return model, fit("mart", model, initial_epoch=1, epochs=2, batch_size=7)

    one, two = run(tf.distribute.get_strategy(), run_eagerly=True), run(two_replicas)
    same_weights(one[0], two[0], tolerance=1e-5)
    np.testing.assert_allclose(one[1]["loss"], two[1]["loss"], atol=1e-5)


def test_two_replicas_may_share_their_statistics(two_replicas):
    layers = [keras.layers.Conv2D(3, 3), keras.layers.BatchNormalization(synchronized=True), keras.layers.Flatten()]
    with two_replicas.scope():
        wrapped = keras.Sequential([keras.Input(X.shape[1:]), *layers, keras.layers.Dense(3)])
        model = perturbed("at", km.AWP(GAMMA), wrapped)
    assert np.isfinite(fit("at", model)["loss"]).all()


def test_a_network_without_kernels(two_replicas):
    with two_replicas.scope():
        wrapped = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(3)])
        wrapped.layers[-1].trainable = False
        wrapped = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.BatchNormalization(), wrapped])
        model = perturbed("at", km.AWP(GAMMA), wrapped)
    assert np.isfinite(fit("at", model)["loss"]).all()


def test_gradients_may_be_sparse():
    class Positions(keras.layers.Layer):
        def build(self, shape):
            self.table = keras.layers.Embedding(shape[1], shape[2])
            self.table.build(shape)

        def call(self, images):
            return images + self.table(keras.ops.arange(images.shape[1]))

    images = keras.Input(X.shape[1:])
    hidden = Positions()(keras.layers.Reshape((12, 3))(images))
    wrapped = keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(hidden)))
    table = wrapped.layers[2].table
    model = km.AT(wrapped, km.PGD(km.Linf(0.1), 1), seed=0, weight_perturbation=km.AWP(GAMMA, warmup=1))
    model.compile("sgd")
    before = table.embeddings.numpy()
    assert np.isfinite(fit("at", model, epochs=2)["loss"]).all()
    assert np.abs(table.embeddings.numpy() - before).max() > 0


@pytest.mark.slow
def test_xla_changes_nothing(monkeypatch):
    replace_random_numbers(monkeypatch.setattr)
    models = [perturbed("mart", km.AWP(GAMMA), jit_compile=jit_compile) for jit_compile in (False, True)]
    losses = [fit("mart", model, batch_size=11)["loss"] for model in models]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    same_weights(*models, tolerance=1e-5)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("`gamma`.*gamma=0", lambda: km.AWP(0)),
        ("`gamma`.*gamma=-1", lambda: km.AWP(-1)),
        ("`gamma`.*gamma=inf", lambda: km.AWP(float("inf"))),
        ("`gamma`.*gamma=nan", lambda: km.AWP(float("nan"))),
        ("`warmup`.*warmup=-1", lambda: km.AWP(0.01, -1)),
        ("`warmup`.*warmup=1.5", lambda: km.AWP(0.01, 1.5)),
        ("keras_mart.AWP.*0.01", lambda: km.Standard(network(), weight_perturbation=0.01)),
    ],
)
def test_bad_arguments_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()
