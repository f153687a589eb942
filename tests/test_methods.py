"""The contract of every method in the registry, and properties of single methods."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from agreement import replace_random_numbers, teacher
from conftest import Counting, Plain, images_and_labels

import keras_mart as km
from keras_mart.methods import METHODS, Outputs

EXAMPLES, CLASSES, SHAPE = 22, 3, (6, 6, 1)
ATTACK = km.PGD(km.Linf(0.1), steps=2, step_size=0.05)
MMA = {"attack": ATTACK, "num_examples": EXAMPLES, "max_epsilon": 0.3, "min_margin": 0.05}
# Every method, and the second form of those that have two.
CASES = [*METHODS, "alp-original", "clp-original"]
every_method = pytest.mark.parametrize("case", CASES)
# One method of each kind: kinds differ in the images that they train on and the state that they keep.
KINDS = ("standard", "at", "mart", "mma", "clp-original", "hat", "dkl", "gradalign")


X, Y = images_and_labels(EXAMPLES)
INDEX = np.arange(EXAMPLES)


def network(batch_norm=True, classes=CLASSES, regularizer=None):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(3, 3, kernel_regularizer=regularizer), keras.layers.BatchNormalization()]
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            *layers[: 2 if batch_norm else 1],
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, dtype="float32"),
        ]
    )


TEACHER = {"attack": ATTACK, "teacher": teacher()}
ARGUMENTS = {"standard": {}, "mma": MMA, "hat": TEACHER, "rslad": TEACHER}

# For a few steps: to trace a step takes as long as some ten of them.
EAGER = {"run_eagerly": True}

INGREDIENTS = (
    "weight_average", "weight_average_start", "label_smoothing", "epsilon_schedule", "attack_mode", "statistics",
)  # fmt: skip


def build(case, wrapped=None, compiled=True, **compile_arguments):
    name, _, form = case.partition("-")
    arguments = ARGUMENTS.get(name, {"attack": ATTACK}) | ({"form": form} if form else {})
    arguments |= {name: compile_arguments.pop(name) for name in INGREDIENTS if name in compile_arguments}
    model = METHODS[name](wrapped or network(), seed=1, **arguments)
    if compiled:
        model.compile(km.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3), **compile_arguments)
    return model


def inputs(case, x=X, index=INDEX):
    return (x, index[: len(x)]) if case == "mma" else x


def fit(case, model, x=X, y=Y, **arguments):
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0} | arguments
    return model.fit(inputs(case, x), y, **arguments).history


def same_weights(one, other, tolerance=0.0):
    for left, right in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=tolerance, rtol=0)


def own_config(model):
    return {name: value for name, value in model.get_config().items() if name != "network"}


@every_method
def test_fits_evaluates_saves_and_resumes(case, tmp_path):
    model = build(case, metrics=["accuracy"])
    history = fit(case, model, epochs=2, validation_data=(X, Y))
    metrics = {"loss", "accuracy", "natural_accuracy"} | ({"adversarial_accuracy"} if case != "standard" else set())
    assert set(history) == metrics | {f"val_{name}" for name in metrics}
    assert np.isfinite(list(history.values())).all()
    assert history["accuracy"] == history["natural_accuracy"]
    assert int(model.step) == 6

    judged = model.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
    assert judged == model.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
    logits = model.predict(X, verbose=0)
    assert logits.shape == (EXAMPLES, CLASSES) and logits.dtype == "float32"
    np.testing.assert_allclose(judged["natural_accuracy"], (logits.argmax(1) == Y).mean(), rtol=1e-6)

    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    same_weights(model, loaded)
    assert type(loaded) is type(model)
    assert own_config(loaded) == own_config(model)
    for mine, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for each in (model, loaded):  # tests/test_ingredients.py resumes as it was compiled
        each.compile(each.optimizer, **EAGER)
    assert fit(case, model, X[:8], Y[:8]) == fit(case, loaded, X[:8], Y[:8])
    same_weights(model, loaded)


@pytest.mark.parametrize("case", ["standard", "mart", "mma", "clp-original", "gradalign"])
def test_the_seed_determines_the_run(case):
    runs = [build(case, **EAGER), build(case, **EAGER)]
    assert fit(case, runs[0]) == fit(case, runs[1])
    same_weights(*runs)
    if case != "standard":
        other = build(case, **EAGER)
        other.seed = 2
        fit(case, other)
        with pytest.raises(AssertionError):
            same_weights(runs[0].network, other.network)  # the model's weights are its seed too


# XLA compiles slowly, and again for each batch size: one method with XLA is enough for the daily tests.
WITH_XLA = [pytest.param(case, True, marks=[] if case == "mart" else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(("case", "xla"), [*((case, False) for case in KINDS), *WITH_XLA])
def test_two_replicas_equal_one_device(case, xla, two_replicas, monkeypatch):
    replace_random_numbers(monkeypatch.setattr)

    def run(strategy, **how):
        with strategy.scope():
            wrapped = network(batch_norm=False, regularizer="l2")
            model = build(case, wrapped, metrics=["accuracy"], **how)
        how = {"batch_size": size, "sample_weight": np.linspace(0, 2, len(y))}
        if case in ("standard", "mart"):  # validation differs only in having an attack
            how |= {"validation_data": (x, y), "validation_batch_size": len(y) if xla else size}
        # MMA uses the margins of the first epoch in the second.
        return model, fit(case, model, x, y, epochs=2 if case == "mma" else 1, **how)

    # Two replicas get 4 and 3 of the first batch, and one of them none of the second, which has one example.
    # With XLA of 3 and 1, since it compiles again for each size.
    x, y, size = (X[:4], Y[:4], 3) if xla else (X[:8], Y[:8], 7)
    one, two = run(tf.distribute.get_strategy(), **EAGER), run(two_replicas, jit_compile=xla)
    same_weights(one[0], two[0], tolerance=1e-5)
    for name, values in one[1].items():
        np.testing.assert_allclose(values, two[1][name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("limit", "scaled"), [("clipnorm", False), ("global_clipnorm", True), ("clipvalue", True)])
def test_two_replicas_clip_the_gradient_of_the_whole_batch(limit, scaled, two_replicas):
    def run(strategy):
        with strategy.scope():
            model = km.Standard(network(batch_norm=False), seed=0)
            optimizer = keras.optimizers.SGD(1.0, **{limit: 1e-3})
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
            model.compile(optimizer, run_eagerly=strategy is not two_replicas)
        before = model.network.get_weights()
        model.fit(X, Y, batch_size=7, shuffle=False, verbose=0)
        return [after - old for after, old in zip(model.network.get_weights(), before, strict=True)]

    one, two = run(tf.distribute.get_strategy()), run(two_replicas)
    for left, right in zip(one, two, strict=True):
        np.testing.assert_allclose(right, left, atol=1e-6)
        assert np.any(np.abs(left) > 1e-5)


def test_an_optimizer_is_left_as_it_was(two_replicas):
    with two_replicas.scope():
        model = km.Standard(network(batch_norm=False), seed=0)
        optimizer = keras.optimizers.SGD(0.1)
        model.compile(optimizer)
    model.fit(X[:8], Y[:8], verbose=0)
    assert not {"_all_reduce_sum_gradients", "_distributed_tf_update_step"} & vars(optimizer).keys()


def test_several_steps_per_execution_are_refused_on_several_replicas(two_replicas):
    with two_replicas.scope(), pytest.raises(ValueError, match=r"Received: steps_per_execution=2 on 2 replicas"):
        build("at", steps_per_execution=2)


@pytest.mark.parametrize("how", ["fit", "evaluate", "train_on_batch"])
def test_a_model_must_be_compiled(how):
    with pytest.raises(ValueError, match=r"You must call `compile\(\)` before using the model"):
        getattr(build("at", compiled=False), how)(X, Y)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_replicas_follow_a_learning_rate_schedule(jit_compile, two_replicas):
    def run(strategy, **how):
        with strategy.scope():
            model = km.Standard(network(batch_norm=False), seed=0)
            rate = keras.optimizers.schedules.ExponentialDecay(0.01, 1, 0.5)
            model.compile(keras.optimizers.Adam(rate, clipnorm=0.5), **how)
        model.fit(X, Y, batch_size=7, shuffle=False, verbose=0)
        return model

    one, two = run(tf.distribute.get_strategy(), **EAGER), run(two_replicas, jit_compile=jit_compile)
    same_weights(one, two, tolerance=1e-6)


def test_statistics_of_two_replicas_are_weighted_by_examples(two_replicas):
    attack = km.PGD(km.Linf(0), steps=1)
    with two_replicas.scope():
        model = km.AT(network(), attack, seed=0)
        model.compile("sgd")
    # 4 examples on the first replica, 3 on the second; in the last batch one of them has none.
    model.fit(X[:7], Y[:7], batch_size=7, shuffle=False, verbose=0)
    parts = [network(), network()]
    for part, images in zip(parts, (X[:4], X[4:7]), strict=True):
        part(images, training=True)
    for name in ("moving_mean", "moving_variance"):
        of_parts = [getattr(part.layers[1], name).numpy() for part in parts]
        found = getattr(model.network.layers[1], name).value
        for held in two_replicas.experimental_local_results(found):
            np.testing.assert_allclose(held, (4 * of_parts[0] + 3 * of_parts[1]) / 7, rtol=1e-5)

    alone = network()
    alone.set_weights(model.network.get_weights())
    model.fit(X[:1], Y[:1], batch_size=1, verbose=0)
    alone(X[:1], training=True)
    for held in two_replicas.experimental_local_results(model.network.layers[1].moving_mean.value):
        np.testing.assert_allclose(held, alone.layers[1].moving_mean, rtol=1e-5)


def test_an_overflow_on_one_replica_skips_the_step_on_all(two_replicas):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with two_replicas.scope():
            model = build("mart", network(batch_norm=False))
    finally:
        keras.config.set_dtype_policy("float32")
    before = [variable.numpy() for variable in model.trainable_variables]
    weights = np.ones(8, "float32")
    weights[7] = 1e30  # on the second replica
    model.fit(X[:8], Y[:8], sample_weight=weights, batch_size=8, shuffle=False, verbose=0)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)
    fit("mart", model, X[:8], Y[:8], sample_weight=np.ones(8, "float32"))
    assert all(np.isfinite(variable.numpy()).all() for variable in model.trainable_variables)


def test_a_strategy_takes_an_unbuilt_network_and_data_of_its_own(two_replicas):
    with two_replicas.scope():
        model = build("mart", Plain())
    data = two_replicas.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices((X, Y)).batch(11))
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()
    assert model.step.numpy() == 2


@pytest.mark.parametrize("case", ["standard", "mart", "mma"])
def test_xla_changes_nothing_but_the_random_numbers(case, monkeypatch):
    replace_random_numbers(monkeypatch.setattr)  # TensorFlow's differ under XLA
    models = [build(case, **how) for how in (EAGER, {"jit_compile": True})]
    losses = [fit(case, model, batch_size=11)["loss"] for model in models]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    same_weights(*models, tolerance=1e-5)


def test_the_form_of_execution_changes_nothing():
    plain, *others = (build("mart", **arguments) for arguments in ({}, EAGER, {"steps_per_execution": 2}))
    expected = fit("mart", plain)["loss"]
    for other in others:
        np.testing.assert_allclose(fit("mart", other)["loss"], expected, rtol=1e-5)
        same_weights(plain, other, tolerance=1e-6)


def test_metrics_do_not_have_a_step_traced_twice():
    calls = []
    for metrics in (None, ["accuracy"]):
        wrapped, before = keras.Sequential([keras.Input(SHAPE), Counting(), *network().layers]), Counting.calls
        fit("standard", build("standard", wrapped, metrics=metrics))
        calls.append(Counting.calls - before)
    assert calls[0] == calls[1]


@pytest.mark.parametrize(
    ("case", "policy"),
    [("mart", "mixed_bfloat16"), ("mma", "mixed_bfloat16"), ("trades", "mixed_float16"), ("mma", "mixed_float16")],
)
def test_mixed_precision(case, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        wrapped = network()
    finally:
        keras.config.set_dtype_policy("float32")
    model = build(case, wrapped)
    assert model.dtype_policy.name == policy
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    before = model.get_weights()
    history = fit(case, model, epochs=2)
    assert np.isfinite(list(history.values())).all()
    assert any(np.abs(old - new).max() > 1e-4 for old, new in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "run.keras")
    same_weights(model, keras.saving.load_model(tmp_path / "run.keras"))


# Weights, regularisation, shapes.


def first_loss(case="mart", x=X, y=Y, wrapped=None, **arguments):
    return fit(case, build(case, wrapped, **EAGER), x, y, batch_size=EXAMPLES, **arguments)["loss"][0]


def test_weights_scale_each_example_and_the_mean_is_over_examples():
    per_class = sum(first_loss(class_weight={c: float(c == k) for c in range(CLASSES)}) for k in range(CLASSES))
    assert first_loss(sample_weight=2 * np.ones(EXAMPLES)) == pytest.approx(2 * first_loss(), rel=1e-6)
    assert per_class == pytest.approx(first_loss(), rel=1e-5)


@pytest.mark.parametrize("case", ["standard", "at", "mart"])
def test_regularisation_counts_once(case):
    wrapped = network(regularizer=keras.regularizers.L2(0.5))
    penalty = 0.5 * float(np.sum(np.square(wrapped.layers[0].kernel)))
    assert first_loss(case, wrapped=wrapped) == pytest.approx(first_loss(case) + penalty, rel=1e-5)


def test_labels_may_have_a_last_axis_of_one_and_batches_one_example():
    assert first_loss(y=Y[:, None]) == first_loss()
    assert np.isfinite(fit("mart", build("mart"), X[:3], Y[:3], batch_size=1)["loss"]).all()


def test_two_classes():
    x, y = images_and_labels(EXAMPLES, classes=2)
    assert np.isfinite(fit("mart", build("mart", network(classes=2), **EAGER), x, y)["loss"]).all()


def functional():
    images = keras.Input(SHAPE)
    hidden = keras.layers.Dropout(0.5)(keras.layers.Flatten()(images))
    return keras.Model(images, keras.layers.Dense(CLASSES, activity_regularizer="l2")(hidden))


def mobile_net():
    return keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, weights=None, classes=CLASSES, classifier_activation=None
    )


def block_of_mobile_net():
    inner = keras.Input((32, 32, 3))
    x = keras.layers.DepthwiseConv2D(3, use_bias=False)(keras.layers.ZeroPadding2D()(inner))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(x)))
    return keras.Model(inner, keras.layers.Dense(CLASSES)(keras.layers.Dropout(0.1)(x)))


def nested(inner):
    images = keras.Input(SHAPE)
    grown = keras.layers.Resizing(32, 32)(keras.layers.Concatenate()([images] * 3))
    return keras.Model(images, inner()(grown))


FACTORIES = {
    "plain": Plain,
    "functional": functional,
    "nested": lambda: nested(block_of_mobile_net),
    "application": lambda: nested(mobile_net),
}
EVERY_FACTORY = [pytest.param(key, marks=[pytest.mark.slow] if key == "application" else []) for key in FACTORIES]


@pytest.mark.parametrize("factory", EVERY_FACTORY)
def test_any_keras_classifier_can_be_hardened(factory):
    model = build("mart", FACTORIES[factory]())
    assert np.isfinite(list(fit("mart", model, batch_size=11, validation_data=(X, Y)).values())).all()
    adversarial = ATTACK(model, X, Y)
    assert float(keras.ops.max(keras.ops.abs(adversarial - X))) <= 0.1 + 1e-6


def test_a_network_may_have_a_part_called_network():
    class Backbone(keras.Model):
        def __init__(self):
            super().__init__()
            self.network = network()

        def call(self, images):
            return -self.network(images)

    backbone = Backbone()
    expected = (np.argmin(backbone.network(X), axis=1) == Y).mean()
    assert km.evaluate(backbone, (X, Y), {}, verbose=0)["natural"] == expected
    assert np.isfinite(fit("mart", build("mart", backbone, **EAGER))["loss"]).all()


def test_a_frozen_layer_does_not_change_also_with_a_new_optimizer():
    wrapped = network()
    wrapped.layers[0].trainable = False
    kernel = wrapped.layers[0].kernel.numpy()
    model = build("standard", wrapped)
    fit("standard", model)
    model.compile("adam")
    fit("standard", model)
    np.testing.assert_array_equal(wrapped.layers[0].kernel, kernel)


def test_data_may_have_every_form_that_fit_takes():
    def batches():
        yield from ((X[i : i + 11], Y[i : i + 11]) for i in (0, 11))

    class Sequence(keras.utils.PyDataset):
        num_batches = 2

        def __getitem__(self, number):
            return X[11 * number :][:11], Y[11 * number :][:11]

    as_dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(11)
    losses = []
    for data in (batches(), Sequence(), as_dataset):
        losses += build("standard").fit(data, shuffle=False, verbose=0).history["loss"]
    # Only arrays have a static batch size, for which some processors use code that rounds differently.
    expected = fit("standard", build("standard"), batch_size=11)["loss"]
    assert losses == pytest.approx(3 * expected, rel=1e-6)


def test_callbacks_may_be_a_keras_callback_list():
    seen = []
    own = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(int(model.epoch)))
    model = build("standard")
    given = keras.callbacks.CallbackList([own], add_history=True, model=model)
    before = list(given.callbacks)
    fit("standard", model, epochs=2, callbacks=given)
    assert seen == [0, 1] and given.callbacks == before


# Properties of single methods.


def test_at_updates_statistics_with_adversarial_images_only():
    model = build("at", network())
    adversarial, _ = model.perturb(tf.constant(X), tf.constant(Y), model._seed(0, model.step))
    twin = network()
    twin(adversarial, training=True)
    fit("at", model, batch_size=EXAMPLES)
    np.testing.assert_allclose(model.network.layers[1].moving_mean, twin.layers[1].moving_mean, rtol=1e-5)


def test_trades_objective_holds_the_natural_side_fixed():
    model = build("trades", network(batch_norm=False))
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = model.attack_objective(x, Y)(tf.constant(X[::-1].copy()))
    assert tape.gradient(values, x) is None
    assert float(tf.reduce_min(values)) >= 0


def test_mma_keeps_the_margin_of_each_example(tmp_path):
    model = build("mma", network(batch_norm=False))
    fit("mma", model, epochs=3)
    seed = model._seed(0, model.step)
    images, labels, index = tf.constant(X), tf.constant(Y), tf.constant(INDEX)
    boundary, epsilon = model.perturb(images, labels, seed, index)
    margin = model.attack_objective(images, labels)
    correct = margin(images).numpy() < 0
    assert correct.any() and not correct.all()
    np.testing.assert_array_equal(epsilon.numpy()[~correct], 0)
    np.testing.assert_array_equal(boundary.numpy()[~correct], X[~correct])
    inside = correct & (epsilon.numpy() < model.max_epsilon)
    assert inside.any()
    np.testing.assert_allclose(margin(boundary).numpy()[inside], 0, atol=0.02)
    moved = km.Linf(1).distance(boundary, images).numpy()
    np.testing.assert_allclose(moved[inside], epsilon.numpy()[inside], atol=1e-5)

    def remember(index, epsilon, real):
        model.remember(None, Outputs(None, None, tf.constant(epsilon), tf.constant(index)), tf.constant(real))

    remember(INDEX[:5], epsilon[:5], [1.0] * 5)
    np.testing.assert_array_equal(model.margins[:5], epsilon[:5])
    before = model.margins.numpy()
    remember([7, 7, 0], [0.1, 0.2, 9.0], [1.0, 1.0, 0.0])
    assert float(model.margins[7]) == pytest.approx(0.15)  # twice in the batch: the mean
    assert float(model.margins[0]) == before[0]  # padding, which changes nothing
    model.save(tmp_path / "run.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "run.keras").margins, model.margins)


def test_exported_network_is_the_wrapped_one(tmp_path):
    model = build("mart")
    fit("mart", model)
    served = tf.saved_model.load(str(km.export(model, tmp_path))).signatures["serving_default"](images=tf.constant(X))
    np.testing.assert_allclose(served["logits"], model.predict(X, verbose=0), atol=1e-5)


# Invalid arguments and data, refused before any training step.


unfitted = functools.cache(functools.partial(build, **EAGER))  # tests/test_checks.py has compiled steps


def refused(message, *arguments, case="mart", **keywords):
    model = unfitted(case)
    with pytest.raises(ValueError, match=message):
        model.fit(*arguments, verbose=0, **keywords)
    assert int(model.step) == 0


@pytest.mark.parametrize(
    ("message", "x", "y"),
    [
        (r"\[0, 3\).*from 0 to 3", X, np.where(INDEX == 4, 3, Y)),
        (r"\[0, 3\).*from -1", X, np.where(INDEX == 4, -1, Y)),
        ("integers.*float", X, Y + 0.5),
        ("rows that sum to 1", X, 2 * np.eye(CLASSES)[Y]),
        ("to 255.*by 255", np.where(X == X.max(), 255, X), Y),
        ("values from -0.99", 2 * X - 1, Y),
        ("NaN", np.where(X > 0.9, np.nan, X), Y),
        ("shape", X[..., 0], Y),
        ("shape", np.repeat(X, 3, -1), Y),
        ("empty", X[:0], Y[:0]),
        ("no labels", X, None),
        ("label", X, Y[:-1]),
    ],
)
def test_bad_data_is_refused(message, x, y):
    refused(message, x, y)
    refused(message, X, Y, validation_data=(x, y))
    if y is not None and len(x) == len(y):
        refused(message, tf.data.Dataset.from_tensor_slices((x, y)).batch(EXAMPLES))


@pytest.mark.parametrize("method", ["evaluate", "train_on_batch", "test_on_batch"])
def test_other_methods_refuse_bad_data_too(method):
    with pytest.raises(ValueError, match="255"):
        getattr(build("mart"), method)(255 * X, Y)


def test_mma_refuses_data_without_indices():
    refused("with_index=True", X, Y, case="mma")
    refused("num_examples=22.*from 1 to 22", (X, INDEX + 1), Y, case="mma")


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("probabilities", lambda: km.MART(keras.Sequential([network(), keras.layers.Softmax()]), ATTACK)),
        ("probabilities", lambda: km.AT(keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None), ATTACK)),
        ("keras.Model", lambda: km.MART(lambda x: x, ATTACK)),
        ("wrapped by a training method", lambda: km.MART(build("mart"), ATTACK)),
        ("`attack`.*MART", lambda: km.MART(network())),
        ("`attack`.*climb", lambda: km.AT(network(), attack="pgd")),
        ("natural image", lambda: km.TRADES(network(), km.PGD(km.Linf(0.1), start="zero"))),
        ("natural image", lambda: km.TRADES(network(), km.FGSM(km.Linf(0.1)))),
        ("natural image", lambda: km.DKL(network(), km.FGSM(km.Linf(0.1)))),
        ("natural image", lambda: km.HAT(network(), km.NFGSM(km.Linf(0.1), noise=0), teacher=network())),
        ("`alpha`", lambda: km.DKL(network(), ATTACK, alpha=-1)),
        ("`temperature`", lambda: km.DKL(network(), ATTACK, temperature=0)),
        ("`alpha` must be between 0 and 1", lambda: km.RSLAD(network(), **TEACHER, alpha=1.5)),
        ("`gamma`", lambda: km.HAT(network(), **TEACHER, gamma=-1)),
        ("`helper_scale`", lambda: km.HAT(network(), **TEACHER, helper_scale=0)),
        ("`seed`", lambda: km.Standard(network(), seed=-1)),
        ("`beta`", lambda: km.MART(network(), ATTACK, beta=-1)),
        ("`form`.*original", lambda: km.ALP(network(), ATTACK, form="originl")),
        ("`num_examples`", lambda: km.MMA(network(), ATTACK, num_examples=0, max_epsilon=0.1)),
        ("`attack`", lambda: km.AT(network(), km.PGD)),
        ("`attack`.*climb.*DLR", lambda: km.AT(network(), km.APGDDLR(km.Linf(0.1)))),
        ("`num_examples`", lambda: km.MMA(network(), ATTACK, num_examples=1.5, max_epsilon=0.1)),
        ("min_margin=0.2", lambda: km.MMA(network(), ATTACK, num_examples=9, max_epsilon=0.1, min_margin=0.2)),
        ("`max_epsilon`", lambda: km.MMA(network(), ATTACK, num_examples=9, max_epsilon=0)),
        ("stay in the ball", lambda: km.MMA(network(), km.NFGSM(km.Linf(0.1)), num_examples=9, max_epsilon=0.1)),
        ("positive epsilon", lambda: km.MMA(network(), km.PGD(km.Linf(0)), num_examples=9, max_epsilon=0.1)),
        ("takes no loss.*MART", lambda: build("mart", loss="mse")),
    ],
)
def test_bad_construction_is_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_probabilities_are_detected_without_a_softmax_layer():
    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def call(self, images):
            return keras.ops.softmax(self.inner(images))

    with pytest.raises(ValueError, match="sum to 1"):
        build("mart", Hidden()).fit(X, Y, verbose=0)
