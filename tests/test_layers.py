"""The faster layers against Keras's: results, gradients, statistics; and the cases left to Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import relative, supported

from keras_mart import layers

SHAPE = (8, 5, 6, 3)
RANDOM = np.random.default_rng(0)
# Non-zero means, as after a ReLU: E[x^2] - E[x]^2 would lose digits there. Exact in half precision.
X = np.round(8 * RANDOM.normal(2, 1, SHAPE)).astype("float32") / 8
OUTER = np.round(8 * RANDOM.normal(0, 1, SHAPE)).astype("float32") / 8
ROUNDING = {"float64": 1e-12, "float32": 1e-5, "mixed_bfloat16": 2.0**-8, "mixed_float16": 2.0**-11}
HALF = ("mixed_bfloat16", "mixed_float16")
NORMALISATIONS = (layers.BatchNormalization, keras.layers.BatchNormalization)


def built(cls, shape=SHAPE, trainable=True, **options):
    """Returns a layer with seeded weights, none at its default."""
    layer = cls(**{"epsilon": 1e-5} | options)
    layer.build((None, *shape[1:]))
    random = np.random.default_rng(1)
    for variable in layer.weights:
        variable.assign(random.uniform(0.5, 1.5, variable.shape))
    layer.trainable = trainable
    return layer


def outcome(layer, images, outer=None, call=None, **arguments):
    """Returns the results of a call by name: outputs, gradients of the sum of outputs times `outer`, new variables."""
    images = tf.cast(images, layer.compute_dtype)
    outer = tf.ones_like(images) if outer is None else tf.cast(outer, layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = (call or layer)(images, **arguments)
    sources = {"images": images, **{variable.name: variable.value for variable in layer.trainable_variables}}
    gradients = tape.gradient(outputs, sources, output_gradients=outer)
    return {
        "outputs": outputs,
        **{f"gradient of {name}": gradient for name, gradient in gradients.items()},
        **{variable.name: variable.numpy() for variable in layer.variables},
    }


def assert_same(got, expected, rounding):
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name].dtype == expected[name].dtype
        assert relative(got[name], expected[name]) < rounding, name


def operations(function, shape, dtype):
    """Returns the operations in the trace of a function of images."""
    return tf.function(function).get_concrete_function(tf.TensorSpec(shape, dtype)).graph.get_operations()


def is_fused(layer, shape, **arguments):
    dtype = layer.compute_dtype
    found = operations(lambda images: layer(images, training=True, **arguments), (None, *shape[1:]), dtype)
    return any(operation.type == "FusedBatchNormV3" for operation in found)


# --- BatchNormalization ---


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options", [{}, {"scale": False}, {"center": False}, {"momentum": 0.5}, {"trainable": False}], ids=repr
)
def test_is_keras_own(options, dtype, training):
    ours, theirs = (built(cls, dtype=dtype, **options) for cls in NORMALISATIONS)
    got, expected = (outcome(layer, X, OUTER, training=training) for layer in (ours, theirs))
    assert_same(got, expected, ROUNDING[dtype])


def by_hand(layer, images, outer, training):
    """Returns what `outcome` does, except the variables, computed in float64."""
    gamma, beta, mean, variance = (weight.astype("float64") for weight in layer.get_weights())
    axes = (0, 1, 2)
    if training:
        mean, variance = images.mean(axes), images.var(axes)
    deviation = np.sqrt(variance + layer.epsilon)
    standard = (images - mean) / deviation
    of_gamma, of_beta = (outer * standard).sum(axes), outer.sum(axes)
    values = images.size / images.shape[-1]
    through_statistics = (of_beta + standard * of_gamma) / values if training else 0.0
    return {
        "outputs": gamma * standard + beta,
        "gradient of images": gamma / deviation * (outer - through_statistics),
        "gradient of gamma": of_gamma,
        "gradient of beta": of_beta,
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_loses_no_more_than_keras(dtype, training):
    ours, theirs = (built(cls, dtype=dtype) for cls in NORMALISATIONS)
    exact = by_hand(ours, X.astype("float64"), OUTER.astype("float64"), training)
    got, keras_own = (outcome(layer, X, OUTER, training=training) for layer in (ours, theirs))
    for name, expected in exact.items():
        assert got[name].dtype == keras_own[name].dtype
        assert relative(got[name], expected) < min(ROUNDING[dtype], 1.1 * relative(keras_own[name], expected) + 1e-6)
    for name in ("moving_mean", "moving_variance"):
        assert relative(got[name], keras_own[name]) < ROUNDING["float32"]


@pytest.mark.parametrize("dtype", HALF)
def test_frozen_in_half_precision(dtype):
    ours, theirs = (built(cls, dtype=dtype, trainable=False) for cls in NORMALISATIONS)
    got, expected = (outcome(layer, X, OUTER, training=True) for layer in (ours, theirs))
    assert_same(got, expected, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_a_single_value_has_no_variance(dtype):
    layer = built(layers.BatchNormalization, dtype=dtype)
    images, outer = X[:1, :1, :1].astype("float64"), OUTER[:1, :1, :1].astype("float64")
    expected = by_hand(layer, images, outer, training=True)
    expected["moving_mean"] = 0.99 * layer.moving_mean.numpy() + 0.01 * images[0, 0, 0]
    expected["moving_variance"] = 0.99 * layer.moving_variance.numpy()
    got = outcome(layer, images, outer, training=True)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, ROUNDING[dtype], ROUNDING["float32"], err_msg=name)


ASIDE = {
    "epsilon": ({"epsilon": 1e-6}, SHAPE, {}),
    "synchronized": ({"synchronized": True}, SHAPE, {}),
    "renorm": ({"renorm": True}, SHAPE, {}),
    "axis": ({"axis": 1}, SHAPE, {}),
    "no images": ({}, (8, 3), {}),
    "a mask": ({}, SHAPE, {"mask": X[..., 0] > 2}),
    "float64": ({"dtype": "float64"}, SHAPE, {}),
    "half weights": ({"dtype": "bfloat16"}, SHAPE, {}),
}


@pytest.mark.parametrize("name", supported(ASIDE))
def test_steps_aside(name):
    options, shape, arguments = ASIDE[name]
    ours, theirs = (built(cls, shape, **options) for cls in NORMALISATIONS)
    images, outer = X.reshape(-1)[: np.prod(shape)].reshape(shape), OUTER.reshape(-1)[: np.prod(shape)].reshape(shape)
    for training in (True, False):
        got, expected = (
            outcome(layer, images, outer, training=training, **arguments) for layer in (ours, theirs)
        )  # fmt: skip
        assert_same(got, expected, ROUNDING["float32"])
    arguments = {argument: tf.constant(value) for argument, value in arguments.items()}
    assert not is_fused(ours, shape, **arguments)


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_is_one_operation(dtype):
    assert is_fused(built(layers.BatchNormalization, dtype=dtype), SHAPE)
    assert not is_fused(built(keras.layers.BatchNormalization, dtype=dtype), SHAPE)


def test_makes_no_float32_copy_of_the_images():
    def copies(cls):
        layer = built(cls, dtype="mixed_bfloat16")
        found = operations(lambda images: layer(images, training=True), (None, *SHAPE[1:]), "bfloat16")
        return [op for op in found for output in op.outputs if output.shape.rank == 4 and output.dtype == tf.float32]

    assert not copies(layers.BatchNormalization)
    assert copies(keras.layers.BatchNormalization)


def network(cls):
    return keras.Sequential([keras.Input(SHAPE[1:]), keras.layers.Conv2D(4, 3), cls(epsilon=1e-5), cls(scale=False)])


@pytest.mark.parametrize("first, second", [NORMALISATIONS, NORMALISATIONS[::-1]], ids=["to keras", "from keras"])
def test_weights_are_keras_own(first, second, tmp_path):
    source, target, other = network(first), network(second), network(second)
    source(X, training=True)  # changes the statistics
    target.set_weights(source.get_weights())
    source.save_weights(tmp_path / "network.weights.h5")
    other.load_weights(tmp_path / "network.weights.h5")
    expected = source(X, training=False)
    assert relative(target(X, training=False), expected) < ROUNDING["float32"]
    assert relative(other(X, training=False), expected) < ROUNDING["float32"]


def test_serialisation(tmp_path):
    layer = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, scale=False, name="norm")
    again = layers.BatchNormalization.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert layer.get_config().keys() == keras.layers.BatchNormalization().get_config().keys()
    saved = network(layers.BatchNormalization)
    saved(X, training=True)
    saved.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert type(loaded.layers[1]) is layers.BatchNormalization
    np.testing.assert_array_equal(loaded(X), saved(X))


def test_each_replica_keeps_its_own_statistics_as_with_keras(two_replicas):
    with two_replicas.scope():
        pair = [built(cls) for cls in NORMALISATIONS]
    old = {name: getattr(pair[0], name).numpy() for name in ("moving_mean", "moving_variance")}

    @tf.function
    def step():
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            part = tf.constant(X)[4 * number : 4 * number + 4]
            return [layer(part, training=True) for layer in pair]

        return two_replicas.run(replica)

    local = two_replicas.experimental_local_results
    ours, theirs = (local(outputs) for outputs in step())
    for replica, part in enumerate((X[:4], X[4:])):
        assert relative(ours[replica], theirs[replica]) < ROUNDING["float32"]
        for name, new in (("moving_mean", part.mean((0, 1, 2))), ("moving_variance", part.var((0, 1, 2)))):
            for layer in pair:
                running = local(getattr(layer, name).value)[replica]
                assert relative(running, 0.99 * old[name] + 0.01 * new) < ROUNDING["float32"]


def test_on_a_gpu_it_is_as_keras_has_it(monkeypatch):
    assert layers.can_fuse(built(layers.BatchNormalization), tf.zeros(SHAPE))
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: ["a GPU"])
    assert not layers.can_fuse(built(layers.BatchNormalization), tf.zeros(SHAPE))
