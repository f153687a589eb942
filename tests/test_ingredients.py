"""Options of all methods: soft labels, smoothing, epsilon schedules, modes, statistics, further forward passes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import Plain
from test_methods import ATTACK, CLASSES, EAGER, EXAMPLES, KINDS, X, Y, build, fit, inputs, same_weights

import keras_mart as km

some_methods = pytest.mark.parametrize("case", ["standard", "mart", "mma"])
ONE_HOT = np.eye(CLASSES, dtype="float32")[Y]
GROWING = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 0.1)


def batch_norm(model):
    return next(each for each in model.network.layers if isinstance(each, keras.layers.BatchNormalization))


def all_of_it(case, model):
    """Returns the arguments of all options that a method supports."""
    arguments = {"label_smoothing": 0.1, "weight_average": 0.9, "weight_average_start": 2}
    arguments |= {"epsilon_schedule": GROWING} if model.has_radius and case != "clp-original" else {}
    return arguments | ({"attack_mode": "training", "statistics": "adversarial"} if model.has_adversary else {})


@pytest.mark.parametrize("case", KINDS)
def test_every_method_trains_with_all_options_and_resumes(case, tmp_path):
    model = build(case, metrics=["accuracy"], **all_of_it(case, build(case, compiled=False)))
    # Validation, and that a loaded model is compiled, depend on the method only in having an attack.
    x, y, more = X[:16], ONE_HOT[:16], case in ("standard", "mart")
    history = fit(case, model, x, y, validation_data=(x, y) if more else None)
    assert history["accuracy"] == history["natural_accuracy"]
    assert np.isfinite(list(history.values())).all()
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    if not more:
        for each in (model, loaded):
            each.compile(each.optimizer, **EAGER)
    assert fit(case, model, x, y) == fit(case, loaded, x, y)
    same_weights(model, loaded)


@some_methods
def test_one_hot_labels_train_as_integers_do(case):
    hard, soft = build(case, **EAGER), build(case, **EAGER)
    expected, found = (
        model.train_on_batch(inputs(case), labels, return_dict=True) for model, labels in ((hard, Y), (soft, ONE_HOT))
    )
    assert found == pytest.approx(expected, rel=1e-5)
    same_weights(hard, soft, tolerance=1e-6)


@some_methods
def test_smoothing_is_a_soft_label_in_the_loss_only(case):
    smoothed, plain = build(case, label_smoothing=0.3, **EAGER), build(case, **EAGER)
    found = smoothed.test_on_batch(X, Y, return_dict=True)
    assert found == pytest.approx(plain.test_on_batch(X, 0.7 * ONE_HOT + 0.1, return_dict=True), rel=1e-5)
    plain.reset_metrics()
    assert found["loss"] != plain.test_on_batch(X, Y, return_dict=True)["loss"]
    if case != "standard":
        arguments = tf.constant(X), tf.constant(Y), smoothed._seed(0, smoothed.step), tf.range(EXAMPLES)
        np.testing.assert_array_equal(smoothed.perturb(*arguments)[0], plain.perturb(*arguments)[0])


def test_soft_labels_are_mixed_and_weigh_each_class():
    model = build("at", validation_attack=km.PGD(km.Linf(0.0), 1))  # since attacks use only one label of a mixed one
    mixed = np.full((EXAMPLES, CLASSES), 1 / CLASSES, "float32")
    losses = [model.evaluate(X, np.full(EXAMPLES, label), verbose=0)[0] for label in range(CLASSES)]
    assert model.evaluate(X, mixed, verbose=0)[0] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((EXAMPLES, CLASSES), 0.5), "rows that sum to 1.5"),
        (np.full((EXAMPLES, CLASSES), [-0.5, 1.0, 0.5]), "values from -0.5"),
        (np.eye(4)[Y], r"Received: shape \(22, 4\)"),
    ],
)
def test_wrong_soft_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        fit("at", build("at"), y=labels)
    if "shape" not in message:  # of a data set only the specs are checked before training
        with pytest.raises(ValueError, match=r"Soft labels must be .* at step 1"):
            build("at", **EAGER).fit(
                tf.data.Dataset.from_tensor_slices((X, labels.astype("float32"))).batch(8), verbose=0
            )


def test_attacks_and_evaluation_take_the_largest_share_for_the_label():
    model = build("at")
    np.testing.assert_array_equal(ATTACK(model, X, 0.7 * ONE_HOT + 0.1, seed=1), ATTACK(model, X, Y, seed=1))
    tables = [km.evaluate(model, (X, labels), {"pgd": ATTACK}, verbose=0) for labels in (0.7 * ONE_HOT + 0.1, Y)]
    assert tables[0].summary()["attacks"] == tables[1].summary()["attacks"]


def test_the_ball_grows_with_the_steps():
    model = build("mart", epsilon_schedule=GROWING)
    arguments = tf.constant(X), tf.constant(Y), model._seed(0, model.step)
    for step, radius in ((0, 0.0), (2, 0.05), (9, 0.1)):
        model.step.assign(step)
        found, epsilon = model.perturb(*arguments)
        assert float(epsilon) == pytest.approx(radius)
        assert float(tf.reduce_max(km.Linf(1).distance(found, X))) == pytest.approx(radius, abs=1e-6)


def test_the_attack_may_see_the_network_in_training_mode():
    model = build("mart", attack_mode="training")
    before = batch_norm(model).moving_mean.numpy()
    found = tf.function(model.inference())(tf.constant(X))
    np.testing.assert_array_equal(batch_norm(model).moving_mean, before)
    assert np.abs(found - model.network(X, training=False)).max() > 1e-2
    np.testing.assert_allclose(found, model.network(X, training=True), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}])
def test_statistics_may_be_the_adversarial_images_only(options):
    options = options | EAGER
    model, both = build("mart", statistics="adversarial", **options), build("mart", **options)
    perturbed, _ = model.perturb(tf.constant(X), tf.constant(Y), model._seed(0, model.step))
    halves = [
        keras.ops.split(model.network.layers[0](images), options.get("accumulate", 1)) for images in (X, perturbed)
    ]
    natural, adversarial = (np.mean([np.mean(each, (0, 1, 2)) for each in parts], 0) for parts in halves)
    for each in (model, both):
        each.train_on_batch(X, Y)
    np.testing.assert_allclose(batch_norm(model).moving_mean, 0.01 * adversarial, atol=1e-6)
    np.testing.assert_allclose(batch_norm(both).moving_mean, 0.99 * 0.01 * natural + 0.01 * adversarial, atol=1e-6)


def test_an_average_that_starts_later_is_a_copy_until_then():
    model = build("at", weight_average=0.9, weight_average_start=3, **EAGER)
    same = []
    for _ in range(5):
        model.train_on_batch(X, Y)
        pairs = zip(model.network.get_weights(), model.averaged_network.get_weights(), strict=True)
        same.append(all(np.array_equal(one, other) for one, other in pairs))
    # Step 3, counted from 0, is the first one of the average, and still a copy.
    assert same == [True, True, True, True, False]


class Thrice(km.TRADES):
    """Forwards the natural and the perturbed images again, which must give the same logits."""

    def training_loss(self, labels, outputs):
        again = [outputs.forward(each) for each in (outputs.images, outputs.perturbed)]
        pairs = zip(again, (outputs.natural, outputs.adversarial), strict=True)
        wrong = sum(keras.ops.max(keras.ops.abs(one - other), -1) for one, other in pairs)
        return keras.ops.mean(again[0] ** 2, -1) + 1e3 * wrong


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"jit_compile": True}])
def test_a_loss_may_ask_for_further_forwards(options):
    layers = [keras.layers.Flatten(), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    model = Thrice(keras.Sequential([keras.Input(X.shape[1:]), *layers]), km.PGD(km.Linf(0.1), 1), seed=0)
    model.compile(keras.optimizers.SGD(0.1), **options)
    before = model.network.get_weights()[0]
    # All forward passes of a step draw the same random numbers: otherwise the loss would be in the thousands.
    assert fit("at", model, batch_size=11)["loss"][0] < 10
    assert not np.array_equal(model.network.get_weights()[0], before)
    if "accumulate" in options:  # which evaluation ignores; one program of XLA is enough
        logits = model.predict(X, verbose=0)
        assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(np.mean(logits**2), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("at", {"attack_mode": "train"}, "`attack_mode` must be one of evaluation, training"),
        ("at", {"statistics": "natural"}, "`statistics` must be one of all, adversarial"),
        ("at", {"epsilon_schedule": 0.1}, "`epsilon_schedule` must be a keras.optimizers.schedules"),
        ("mma", {"epsilon_schedule": GROWING}, "one radius for all examples; MMA has none"),
        ("standard", {"epsilon_schedule": GROWING}, "one radius for all examples; Standard has none"),
        ("standard", {"attack_mode": "training"}, "methods with an adversary; Standard has none"),
        ("at", {"label_smoothing": 1.0}, "`label_smoothing` must be at least 0 and below 1"),
        ("at", {"weight_average": 0.9, "weight_average_start": -1}, "`weight_average_start` must be a number of steps"),
        ("at", {"weight_average_start": 1}, "`weight_average_start` needs a `weight_average`"),
        ("clp-original", {"epsilon_schedule": GROWING}, "`epsilon_schedule` has no effect on noise"),
    ],
)
def test_arguments_without_effect_are_refused(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(method, compiled=False, **arguments)


def test_attacks_in_training_mode_run_on_subclassed_networks():
    model = km.AT(Plain(), ATTACK, seed=0, attack_mode="training", statistics="adversarial")
    model.compile("sgd")
    fit("at", model)
