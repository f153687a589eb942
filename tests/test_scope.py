"""Layers during training: variables that they assign, random numbers, and calls that are already traced."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import images_and_labels, supported
from keras import layers, ops

import keras_mart as km

SHAPE, CLASSES = (6, 6, 1), 3
X, Y = images_and_labels(16)
# At an epsilon of 0 the adversarial image is the natural one.
NOTHING = km.PGD(km.Linf(0.0), 1)


class Clipped(layers.Layer):
    """A dense layer that keeps its kernel small by assigning it, as weight clipping does."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], CLASSES), initializer="glorot_uniform")

    def call(self, inputs, training=None):
        if training:
            self.kernel.assign(ops.clip(self.kernel, -0.05, 0.05))
        return ops.matmul(inputs, self.kernel)


class Counts(layers.Layer):
    """Counts forward passes in training mode in a variable, and their means in a metric."""

    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean("mean_of_inputs")

    def build(self, shape):
        self.forwards = self.add_weight(shape=(), trainable=False, initializer="zeros")

    def call(self, inputs, training=None):
        if training:
            self.forwards.assign_add(1.0)
            self.mean.update_state(inputs)
        return inputs


class Draws(layers.Layer):
    """Keeps a random number of Keras's global seed generator, which belongs to no layer."""

    def build(self, shape):
        self.drawn = self.add_weight(shape=(), trainable=False, initializer="zeros")

    def call(self, inputs, training=None):
        if training:
            self.drawn.assign(keras.random.normal(()))
        return inputs


def network(*first, head=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(SHAPE), *first, layers.Flatten(), head or layers.Dense(CLASSES)])


ASSIGNING = {
    "spectral normalisation": lambda: network(layers.SpectralNormalization(layers.Conv2D(4, 3))),
    "of a frozen layer": lambda: network(layers.SpectralNormalization(layers.Conv2D(4, 3), trainable=False)),
    "a kernel of its own": lambda: network(head=Clipped()),
    "a counter and a metric": lambda: network(Counts()),
    "numbers of no layer's generator": lambda: network(Draws()),
    "batch normalisation": lambda: network(layers.Conv2D(4, 3), layers.BatchNormalization(momentum=0.5)),
    "batch renormalisation": lambda: network(layers.Conv2D(4, 3), layers.BatchNormalization(renorm=True)),
}


# XLA has other random numbers; to it a frozen layer is like others, and test_methods.py has batch normalisation.
WITH_XLA = "spectral normalisation", "a kernel of its own", "a counter and a metric", "batch renormalisation"


@pytest.mark.parametrize("case", supported(ASSIGNING))
def test_assigned_variables_are_as_in_keras_own_step(case):
    """Standard training is Keras's own step: weights, states and metrics are equal."""

    def fit(model):
        return model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history

    plain = ASSIGNING[case]()
    start, loss = plain.get_weights(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras.utils.set_random_seed(0)
    plain.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    expected = fit(plain)
    for jit_compile in [False, True] if case in WITH_XLA else [False]:
        ours = ASSIGNING[case]()
        ours.set_weights(start)
        model = km.Standard(ours, seed=0)
        model.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
        keras.utils.set_random_seed(0)
        found = fit(model)
        # Under Keras 3.12 a step of ours draws twice from the generator of all layers.
        if not ("generator" in case and keras.__version__.startswith("3.12.")):
            for one, other in zip(plain.weights, ours.weights, strict=True):
                np.testing.assert_allclose(other, one, atol=1e-6, err_msg=one.path)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5)


def test_an_assigned_kernel_does_not_change_if_the_step_does_not_count():
    wrapped = network(layers.SpectralNormalization(layers.Conv2D(4, 3)))
    before = wrapped.get_weights()
    model = km.MART(wrapped, km.PGD(km.Linf(0.1), 1), seed=0)
    model.compile("sgd", on_nan="skip")
    model.fit(X, Y, sample_weight=np.full(len(X), np.nan), verbose=0)
    for old, new in zip(before, wrapped.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_an_assigned_perturbed_kernel_loses_its_perturbation():
    """With a learning rate of 0, w becomes the normalised w + v, minus v."""

    def build(weights=None):
        made = network(layers.SpectralNormalization(layers.Conv2D(4, 3, use_bias=False)))
        made.set_weights(weights or made.get_weights())
        return made

    wrapped = build()
    weights, gamma = wrapped.get_weights(), 0.3
    with tf.GradientTape() as tape:
        twin = build(weights)
        loss = ops.mean(km.losses.cross_entropy(Y, twin(X, training=True)))
    gradient = tape.gradient(loss, twin.trainable_variables)[0].numpy()
    kernel = build(weights).layers[0].kernel.numpy()
    move = gamma * np.linalg.norm(kernel) * gradient / np.linalg.norm(gradient)
    moved = build(weights).layers[0]
    moved.kernel.assign(kernel + move)
    model = km.AT(wrapped, NOTHING, seed=0, weight_perturbation=km.AWP(gamma))
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(X, Y, batch_size=len(X), verbose=0)
    np.testing.assert_allclose(wrapped.layers[0].kernel, moved.normalized_weights()[1] - move, atol=1e-5)


# --- random numbers ---


class Divergence(km.TRADES):
    """Trains only on the divergence between natural and adversarial outputs."""

    def training_loss(self, labels, outputs):
        return km.losses.kl_divergence(outputs.natural, outputs.adversarial)


RANDOM = {
    "dropout": lambda: layers.Dropout(0.5),
    "noise": lambda: layers.GaussianNoise(0.5),
    "flip": lambda: layers.RandomFlip("horizontal"),
    "crop": lambda: layers.RandomTranslation(0.3, 0.3),
    "a generator of Keras's": Draws,
}


# TensorFlow's flip does not compile.
@pytest.mark.parametrize(("case", "jit_compile"), [("dropout", False), ("dropout", True), ("flip", False)])
def test_the_same_image_twice_has_no_divergence(case, jit_compile):
    model = Divergence(network(RANDOM[case]()), NOTHING, seed=0)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=jit_compile)
    np.testing.assert_allclose(model.fit(X, Y, batch_size=8, verbose=0, epochs=2).history["loss"], 0, atol=1e-7)


@pytest.mark.parametrize("case", RANDOM)
def test_both_forwards_of_a_step_draw_the_same_numbers_and_the_next_step_others(case):
    class Recorded(Divergence):
        def training_loss(self, labels, outputs):
            return 10 * ops.sum(ops.abs(outputs.natural - outputs.adversarial), -1) + outputs.natural[:, 0]

    wrapped = network(RANDOM[case]())
    model = Recorded(wrapped, NOTHING, seed=0)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=case == "noise")
    seeds = [variable for variable in wrapped.variables if "seed" in variable.path]
    states, losses, drawn = [], [], []

    def look(batch, logs):
        states.append([seed.numpy().tolist() for seed in seeds])
        losses.append(logs["loss"])
        drawn.extend(float(wrapped.layers[0].drawn) for _ in [0] if case == "a generator of Keras's")

    for _ in range(3):
        model.fit(
            X, Y, batch_size=len(X), verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=look)]
        )
    if seeds:
        assert len({str(state) for state in states}) == 3 and len(set(losses)) == 3
    else:
        assert len(set(drawn)) == 3
    assert max(losses) < 5  # other random numbers would give ten times the distance of the outputs


# --- calls that are a tf.function ---


class Inner(layers.Layer):
    """Normalises, drops and multiplies, in Python or as a `tf.function`."""

    def __init__(self, traced):
        super().__init__()
        self.norm, self.drop, self.dense = (
            layers.BatchNormalization(),
            layers.Dropout(0.3, seed=0),
            layers.Dense(CLASSES),
        )
        self.flatten = layers.Flatten()
        self.helper = tf.function(self.compute) if traced == "helper" else self.compute
        if traced == "call":
            self.call = tf.function(self.call)

    def compute(self, images, training):
        return self.dense(self.drop(self.flatten(self.norm(images, training=training)), training=training))

    def call(self, images, training=False):
        return self.helper(images, training=training)


class Whole(keras.Model):
    """The same layers as a subclassed network."""

    def __init__(self, traced):
        super().__init__()
        self.inner = Inner(traced)

    def call(self, images, training=False):
        return self.inner(images, training=training)


class TracedWhole(Whole):
    call = tf.function(Whole.call)


def whole(traced):
    keras.utils.set_random_seed(0)
    made = TracedWhole("") if traced == "network" else Whole(traced)
    made(X)
    return made


@pytest.mark.parametrize(
    ("perturbation", "kinds"), [(None, ["network"]), (km.AWP(0.5), ["network", "call", "helper"])], ids=str
)
def test_a_call_that_is_a_tf_function_trains_like_a_python_function(perturbation, kinds):
    def run(traced):
        wrapped = whole(traced)
        wrapped(X, training=False)  # this trace must not be reused in training
        model = km.MART(wrapped, km.PGD(km.Linf(0.1), 2), seed=1, weight_perturbation=perturbation)
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=not traced)
        return wrapped, model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, epochs=2).history["loss"]

    plain, expected = run("")
    for traced in kinds:
        found, losses = run(traced)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=traced)
        for one, other in zip(plain.get_weights(), found.get_weights(), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-6, err_msg=traced)
        assert not tf.config.functions_run_eagerly()


def test_a_tf_function_that_needs_autograph_is_refused():
    class Branching(Whole):
        @tf.function
        def call(self, images, training=False):
            if tf.reduce_sum(images) > 0:
                images = images + 1
            return self.inner(images, training=training)

    network = Branching("")
    network(X)
    model = km.Standard(network, seed=0)
    model.compile("sgd")
    with pytest.raises(ValueError, match="`network` must not need AutoGraph"):
        model.fit(X, Y, verbose=0)
    assert not tf.config.functions_run_eagerly()
