"""compile(accumulate=n): a step in parts equals the step on the whole batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from agreement import WITH_TEACHER, teacher
from conftest import Counting, images_and_labels
from test_methods import CASES, KINDS

import keras_mart as km
from keras_mart import randomness
from keras_mart.methods import METHODS

EXAMPLES, SHAPE = 14, (6, 6, 1)
X, Y = images_and_labels(EXAMPLES)
WEIGHTS = np.linspace(0, 2, EXAMPLES)
# Batches of 8 and 6: three parts of 3 or 2, the last one padded; of 4, 4 and none if pairs stay together.
BATCH, PARTS = 8, 3


def build(case, accumulate, layers=(), seed=1, options=None, **compile_arguments):
    keras.utils.set_random_seed(0)
    first = keras.layers.Conv2D(3, 3, activation="relu", kernel_regularizer="l2")
    network = keras.Sequential([keras.Input(SHAPE), *layers, first, keras.layers.Flatten(), keras.layers.Dense(3)])
    name, _, form = case.partition("-")
    arguments = {"seed": seed, **(options or {})} | ({"form": form} if form else {})
    if METHODS[name].has_adversary:
        arguments["attack"] = km.PGD(km.Linf(0.1), steps=2, step_size=0.05)
    if name in WITH_TEACHER:
        arguments["teacher"] = teacher()
    if name == "mma":
        arguments |= {"num_examples": EXAMPLES, "max_epsilon": 0.3, "min_margin": 0.05}
    model = METHODS[name](network, **arguments)
    optimizer = km.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3, global_clipnorm=0.5)
    model.compile(**{"optimizer": optimizer, "accumulate": accumulate, "metrics": ["accuracy"], **compile_arguments})
    return model


def fit(model, x=X, y=Y, weights=WEIGHTS, batch=BATCH, **arguments):
    x = (x, np.arange(len(x))) if model.needs_index else x
    arguments = {"shuffle": False, "verbose": 0, "sample_weight": weights[: len(y)], **arguments}
    return model.fit(x, y, batch_size=batch, **arguments).history


def same(one, other, tolerance=5e-7):
    for left, right in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=tolerance, rtol=0)


def assert_equal_in_parts(case, scope=None, data=(), **arguments):
    """Fits with and without parts, and compares all variables and the metrics."""
    models, histories = [], []
    for accumulate in (1, PARTS):
        with scope() if scope else tf.name_scope(""):
            models.append(build(case, accumulate, **arguments))
        histories.append(fit(models[-1], *data))
    same(*models)
    for name, values in histories[0].items():
        assert histories[1][name] == pytest.approx(values, abs=1e-6), name


@pytest.mark.parametrize("case", KINDS)
def test_parts_equal_the_whole(case):
    assert_equal_in_parts(case)


def test_with_perturbed_and_averaged_weights():
    assert_equal_in_parts("trades", options={"weight_perturbation": km.AWP(0.01), "weight_average": 0.9})


# XLA compiles slowly, and draws other random numbers than TensorFlow.
@pytest.mark.parametrize("case", ["standard", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_compiled_by_xla(case):
    assert_equal_in_parts(case, data=(X[:7], Y[:7]), jit_compile=True)


def test_eager():
    assert_equal_in_parts("at", data=(X[:7], Y[:7]), run_eagerly=True)


def test_two_replicas(two_replicas):
    assert_equal_in_parts("mma", two_replicas.scope)


def test_a_part_that_is_not_finite_skips_the_whole_step():
    weights = WEIGHTS.copy()
    weights[4] = np.nan
    assert_equal_in_parts("mart", data=(X, Y, weights), on_nan="skip")


def test_float16_scales_its_loss():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        models = [build("at", accumulate, run_eagerly=accumulate == 1) for accumulate in (1, PARTS)]
    finally:
        keras.config.set_dtype_policy("float32")
    for model in models:
        fit(model)
    same(*models, tolerance=2e-3)


def test_a_saved_model_resumes_in_parts(tmp_path):
    model = build("at", PARTS)
    fit(model)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert loaded.accumulate == PARTS
    for each in (model, loaded):
        fit(each)
    same(model, loaded, 0)


def test_statistics_are_weighted_by_examples():
    model = build("standard", 2, [keras.layers.BatchNormalization(momentum=0.0)])
    fit(model, X[:7], Y[:7])
    # The last example is repeated as padding, but does not count.
    expected = 4 / 7 * X[:4].mean() + 3 / 7 * X[[4, 5, 6, 6]].mean()
    np.testing.assert_allclose(model.network.layers[0].moving_mean, [expected], rtol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Noise(keras.layers.Layer):
    """Keeps the noise that it draws, and its difference from the previous noise."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(0)
        self.drawn, self.change = (self.add_weight(shape=(), trainable=False, initializer="zeros") for _ in range(2))

    def call(self, images, training=False):
        if training:
            drawn = keras.random.uniform((), seed=self.generator)
            self.change.assign(drawn - self.drawn)
            self.drawn.assign(drawn)
        return images


def test_parts_draw_different_numbers_and_seeds_advance_as_without_parts():
    layers = [Noise(), Noise()]
    for accumulate, layer in zip((1, 2), layers, strict=True):
        fit(build("mart", accumulate, [layer], run_eagerly=accumulate == 1), X[:8], Y[:8])
        assert float(layer.change) == 0  # both forward passes of a part draw the same
    alone, mean = (float(layer.drawn) for layer in layers)
    assert abs(mean - alone) > 1e-3
    np.testing.assert_array_equal(*(layer.generator.state for layer in layers))


def test_the_graph_does_not_grow_with_the_parts():
    calls = []
    for accumulate in (2, 5):
        model, before = build("at", accumulate, [Counting()]), Counting.calls
        fit(model, X[:8], Y[:8])
        calls.append(Counting.calls - before)
    assert calls[0] == calls[1]


@pytest.mark.parametrize("draw", [randomness.uniform, randomness.normal])
def test_rows_of_the_numbers_of_a_seed(draw):
    seed, rows = tf.constant([3, 4]), [2, 4, 4]
    of_rows = randomness.Rows(seed, 5, tf.constant(rows))

    def drawn(seed, size):
        seeds = [seed, randomness.fold_in(seed, 7), *randomness.split(seed, 2)]
        return np.stack([draw((size, 2), each) for each in seeds])

    np.testing.assert_array_equal(drawn(of_rows, 3), drawn(seed, 5)[:, rows])
    np.testing.assert_array_equal(randomness.shared_seed(of_rows), seed)


def test_invalid_arguments_are_refused(two_replicas):
    with pytest.raises(ValueError, match=r"`accumulate` must be a positive integer\. Received: accumulate=0"):
        build("at", 0)
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=4)
    with two_replicas.scope(), pytest.raises(ValueError, match=r"`compile\(accumulate=4\)`.*on 2 replicas"):
        build("at", 1, optimizer=optimizer)
