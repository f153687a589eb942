"""Losses and gradients that are not finite: what is reported, and that nothing changes."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import conv_network, images_and_labels
from test_methods import ARGUMENTS

import keras_mart as km
from keras_mart import losses
from keras_mart.methods import METHODS, Outputs, hyperparameter

X, Y = images_and_labels(8)
INDEX = np.arange(8)
GOOD = np.ones(8, "float32")
BAD = np.where(INDEX == 7, np.nan, GOOD)  # on the second replica
ATTACK = km.PGD(km.Linf(0.1), steps=1, step_size=0.05, start="zero")


def build(case="at", network=None, attack=ATTACK, on_nan="stop", average=None, **compile_arguments):
    arguments = {"num_examples": 8, "max_epsilon": 0.3, "min_margin": 0.05} if case == "mma" else {}
    model = METHODS[case](network or conv_network(), attack, seed=0, weight_average=average, **arguments)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), on_nan=on_nan, **compile_arguments)
    return model


def dense_network(*before):
    return keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), *before, keras.layers.Dense(3)])


def fit(model, weights=GOOD, x=X, y=Y, **arguments):
    x = (x, INDEX[: len(x)]) if isinstance(model, km.MMA) else x
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0} | arguments
    return model.fit(x, y, sample_weight=weights, **arguments).history


def state(model, strategy):
    """Returns all variables that must not change, by path, with their values on all replicas."""
    kept = [*model.variables, *model.optimizer.variables]  # statistics, seeds, margins, averages, slots, iterations
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    kept = [each for each in kept if id(each) not in metrics and each is not model.step and each is not model.epoch]
    values = [strategy.experimental_local_results(each.value) for each in kept]
    return {(n, each.path): np.array([v.numpy() for v in vs]) for n, (each, vs) in enumerate(zip(kept, values))}  # noqa: B905


def assert_same(before, after, stopped=False):
    assert before.keys() == after.keys() and len(before) > 5
    for name, value in before.items():
        if stopped and name[1].endswith("/iteration"):
            value = np.clip(after[name], value, value + 1)  # the counter may be one ahead
        np.testing.assert_array_equal(after[name], value, err_msg=str(name))


def restorer(model):
    """Returns a function that gives all variables the values that they have now."""
    values = [(each, each.numpy()) for each in (*model.variables, *model.optimizer.variables)]
    return lambda: [each.assign(value) for each, value in values]


@pytest.fixture
def strategy(replicas, two_replicas):
    return two_replicas if replicas == 2 else tf.distribute.get_strategy()


def test_stop_changes_nothing(two_replicas):
    with two_replicas.scope():
        model = build(average=0.9)
    fit(model, epochs=2)  # after the first step the average is a copy of the network
    before = state(model, two_replicas)
    with pytest.raises(FloatingPointError, match=r"must be finite\. Received at step 3: loss = nan"):
        fit(model, BAD)
    assert_same(before, state(model, two_replicas), stopped=True)
    assert np.isfinite(fit(model)["loss"]).all()


@pytest.mark.parametrize(
    "arguments", [{"run_eagerly": True}, {"steps_per_execution": 2}, {"jit_compile": True}], ids=str
)
def test_stop_reports_the_step_and_the_values_of_the_terms(arguments):
    # Without an adversary and a state, the terms are known.
    network = dense_network()
    model = build("mart", network, km.FGSM(km.Linf(0)), **arguments)
    weights = network.get_weights()
    one_bad = np.concatenate([GOOD[:6], BAD[6:]])
    with pytest.raises(FloatingPointError) as raised:
        model.optimizer.learning_rate = 0.0
        fit(model, one_bad, batch_size=4)
    number = r"([-\d.e]+|nan)"
    names = ["loss", "boosted_cross_entropy", "kl_divergence", "misclassification_weight"]
    found = re.search("step 2: " + ", ".join(f"{name} = {number}" for name in names), str(raised.value))
    assert found, raised.value
    logits = X[4:].reshape(4, -1) @ weights[0] + weights[1]
    wanted = [losses.boosted_cross_entropy(Y[4:], logits), np.zeros(4), losses.misclassification_weight(Y[4:], logits)]
    assert found[1] == "nan"
    np.testing.assert_allclose([float(each) for each in found.groups()[1:]], np.mean(wanted, 1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(network.get_weights()[0], weights[0])


def test_stop_is_reported_at_the_next_check_with_the_state_after_the_last_good_step():
    x, y = images_and_labels(28)
    model, good = build(average=0.9), np.ones(28)
    begin_again = restorer(model)
    for bad, ran in ((3, 3), (6, 7)):  # found at the check after step 4, and at the end of the epoch
        steps, seen = 4 * (bad - 1), []
        begin_again()
        fit(model, good[:steps], x[:steps], y[:steps], batch_size=4)
        wanted = state(model, tf.distribute.get_strategy())
        begin_again()
        weights = np.where(np.arange(28) // 4 == bad - 1, np.nan, good)
        counting = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs, seen=seen: seen.append(batch))
        with pytest.raises(FloatingPointError, match=f"Received at step {bad}: loss = nan"):
            fit(model, weights, x, y, batch_size=4, callbacks=[counting])
        assert int(model.step) == bad - 1
        assert len(seen) == ran  # the steps in between ran, and changed nothing
        assert_same(wanted, state(model, tf.distribute.get_strategy()), stopped=True)
    assert np.isfinite(fit(model, good, x, y, batch_size=4)["loss"]).all()  # the next fit is not affected


def test_the_terms_are_reported_after_a_validation_too():
    model = build("mart", dense_network())
    fit(model, validation_data=(X, Y))
    with pytest.raises(FloatingPointError, match="loss = nan, boosted_cross_entropy = "):
        fit(model, BAD, validation_data=(X, Y))


@pytest.mark.parametrize("again", ["fit", "evaluate", "compile"])
def test_a_step_not_reported_before_a_fit_ended_is_discarded(again):
    def interrupt(batch, logs):
        if batch == 2:  # after the check of the second step, before that of the fourth
            raise KeyboardInterrupt

    model, (x, y) = build(network=dense_network(), run_eagerly=True), images_and_labels(12)
    ending = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(model, np.where(np.arange(12) // 4 == 2, np.nan, 1.0), x, y, batch_size=4, callbacks=[ending])
    if again == "compile":
        model.compile("sgd")
        model.guard.report()
    elif again == "fit":
        fit(model)
    else:
        model.evaluate(X, Y, verbose=0)


def test_skip_reports_how_many_steps_were_left_out(capfd):
    x, y = images_and_labels(28)
    model = build(network=dense_network(), on_nan="skip")
    fit(model, np.where(np.arange(28) // 4 > 3, np.nan, 1.0), x, y, batch_size=4)  # 5, 6 and 7
    said = capfd.readouterr().err
    assert 'Not finite, skipped: "step 7: loss = nan' in said and "(and 2 before it)" in said
    assert int(model.step) == 7


@pytest.mark.parametrize(("case", "replicas"), [("mart", 1), ("mma", 2)])
def test_skip_changes_nothing(case, strategy, capfd):
    with strategy.scope():
        model = build(case, average=0.9, on_nan="skip")
    labels = np.argmax(model(X), 1)  # MMA keeps margins of correctly classified examples
    fit(model, y=labels, epochs=2)  # after the first step the average is a copy of the network
    before = state(model, strategy)
    history = fit(model, BAD, y=labels)
    assert capfd.readouterr().err.count('Not finite, skipped: "step 3: loss = nan, ') == 1
    assert_same(before, state(model, strategy))
    assert np.isfinite(list(history.values())).all()
    fit(model, y=labels)
    after = state(model, strategy)
    stuck = [name for name in before if np.array_equal(before[name], after[name])]
    numbers = ("learning_rate", *(f"/{name}" for name in hyperparameter.names(model)))
    stuck = [name for name in stuck if not name[1].endswith(numbers)]
    (seed,) = stuck
    assert "seed_generator" in seed[1]  # that of the averaged network, always in evaluation mode


def test_skip_leaves_metrics_unchanged_and_continues(two_replicas):
    with two_replicas.scope():
        model = build(network=dense_network(), on_nan="skip", metrics=["accuracy"])
    begin_again = restorer(model)

    def run(chosen, weights):
        begin_again()
        return fit(model, weights, X[chosen], Y[chosen], batch_size=4), model.get_weights()

    history, weights = run(np.roll(INDEX, 4), np.roll(BAD, 4))
    alone, expected = run(INDEX[:4], GOOD[:4])
    assert history == alone
    for one, other in zip(weights, expected, strict=True):
        if one.shape:  # all except the number of the step
            np.testing.assert_array_equal(one, other)


def test_skip_with_gradients_that_accumulate():
    model = build(network=dense_network())
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2)
    model.compile(optimizer, on_nan="skip")
    fit(model, batch_size=4)
    fit(model, GOOD[:4], X[:4], Y[:4])  # half of two
    before = state(model, tf.distribute.get_strategy())
    fit(model, np.full(8, np.nan), batch_size=4)
    assert_same(before, state(model, tf.distribute.get_strategy()))


def mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return conv_network()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(("on_nan", "replicas"), [("stop", 1), pytest.param("skip", 2, marks=pytest.mark.slow)])
def test_overflowing_gradients_are_left_to_loss_scaling(on_nan, strategy):
    with strategy.scope():
        model = build(network=mixed_float16(), on_nan=on_nan)
    scaling = model.optimizer
    fit(model)
    weights, scale = model.network.get_weights(), scaling.dynamic_scale.numpy()
    fit(model, np.where(INDEX == 7, 1e36, GOOD))  # finite, until it is scaled
    assert scaling.dynamic_scale.numpy() == scale / 2
    np.testing.assert_array_equal(model.network.trainable_weights[0], weights[0])
    assert np.isfinite(fit(model)["loss"]).all()
    assert scaling.step_counter.numpy() == 1


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2])
def test_a_loss_that_is_not_finite_does_not_disturb_the_loss_scaling(strategy):
    with strategy.scope():
        model = build(network=mixed_float16(), on_nan="skip")
    fit(model)
    before = state(model, strategy)
    fit(model, BAD)
    assert model.optimizer.step_counter.numpy() == 1
    assert_same(before, state(model, strategy))


class Root(keras.layers.Layer):
    """Adds the absolute value of a weight that is 0, computed such that its gradient is NaN."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1],), initializer="zeros")

    def call(self, inputs):
        return inputs + keras.ops.sqrt(keras.ops.square(self.weight))


def test_a_gradient_that_is_not_finite_counts_too():
    with pytest.raises(FloatingPointError, match=r"step 1: loss = \d"):
        fit(build(network=dense_network(Root())))
    model = build(network=dense_network(Root()), on_nan="skip")
    before = state(model, tf.distribute.get_strategy())
    fit(model)
    assert_same(before, state(model, tf.distribute.get_strategy()))


BETA = 0.7
OF_TERMS = {
    "mart": lambda t: t["boosted_cross_entropy"] + BETA * t["kl_divergence"] * t["misclassification_weight"],
    "trades": lambda t: t["cross_entropy"] + BETA * t["kl_divergence"],
    "alp-original": lambda t: (
        (t["natural_cross_entropy"] + t["adversarial_cross_entropy"]) / 2 + BETA * t["squared_distance_of_logits"]
    ),
    "dkl": lambda t: t["cross_entropy"] + 4 * t["soft_cross_entropy"] + BETA * t["weighted_pair_distance"],
    "mma": lambda t: t["natural_cross_entropy"] / 3 + 2 / 3 * t["boundary_cross_entropy"],
}


def method(case, beta=BETA):
    name, _, form = case.partition("-")
    arguments = ARGUMENTS.get(name, {"attack": km.PGD(km.Linf(0.1)), "beta": beta}) | ({"form": form} if form else {})
    return METHODS[name](conv_network(), seed=0, **arguments)


@pytest.mark.parametrize("case", [*OF_TERMS, "alp", "clp", "clp-original"])
def test_the_terms_are_parts_of_the_loss(case):
    random = np.random.default_rng(0)
    outputs = Outputs(*random.normal(size=(2, 8, 3)).astype("float32"), 0.1)
    terms = method(case).loss_terms(Y, outputs)
    if case in OF_TERMS:
        np.testing.assert_allclose(OF_TERMS[case](terms), method(case).training_loss(Y, outputs), rtol=1e-5)
    else:  # without its second term the loss is the first one
        name = "adversarial_cross_entropy" if case == "alp" else "cross_entropy"
        np.testing.assert_allclose(terms[name], method(case, beta=0).training_loss(Y, outputs), rtol=1e-6)


def test_labels_out_of_range_are_found_in_every_batch():
    model = build(network=dense_network())
    for label in (-1, 3):
        data = tf.data.Dataset.from_tensor_slices((X, np.array([*Y[:6], label, Y[7]]))).batch(4)
        model.step.assign(0)
        with pytest.raises(ValueError, match=r"must lie in \[0, 3\)\. Received at step 2: labels from -?\d to \d\."):
            model.fit(data, verbose=0)
        with pytest.raises(ValueError, match=r"must lie in \[0, 3\)\. Received at evaluation: labels from"):
            model.evaluate(data, verbose=0)


def test_an_unknown_value_is_refused():
    with pytest.raises(ValueError, match=r"`on_nan`.*stop, skip.*'ignore'"):
        build(on_nan="ignore")


def test_other_errors_are_raised_unchanged():
    class Fails(keras.layers.Layer):
        def call(self, inputs, training=None):
            if not training:
                return inputs
            with tf.control_dependencies([tf.debugging.Assert(tf.shape(inputs)[0] != 4, ["four"])]):
                return tf.identity(inputs)

    with pytest.raises(tf.errors.InvalidArgumentError, match="four"):
        fit(build(network=dense_network(Fails())), batch_size=4)


def test_a_single_batch_is_reported_as_in_fit():
    model = build(network=dense_network())
    with pytest.raises(FloatingPointError, match=r"must be finite\. Received at step 1: loss = nan"):
        model.train_on_batch(X, Y, sample_weight=BAD)
    assert int(model.step) == 0
