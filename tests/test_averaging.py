"""The moving average of the weights: its closed form, and that evaluation uses it and training does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import Plain, conv_network, images_and_labels, supported

import keras_mart as km
from keras_mart.attacks.inference import inference

DECAY = 0.2
SHAPE, CLASSES = (6, 6, 1), 3
X, Y = images_and_labels(12)
ATTACK = km.PGD(km.Linf(0.1), steps=1, step_size=0.05)


def unbuilt():
    return keras.Sequential(
        [
            keras.layers.Conv2D(2, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES),
        ]
    )


@keras.saving.register_keras_serializable("test_averaging")
class Subclassed(keras.Model):
    def __init__(self, units=CLASSES, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.norm, self.flatten = keras.layers.BatchNormalization(), keras.layers.Flatten()
        self.dense = keras.layers.Dense(units)

    def call(self, images, training=None):
        return self.dense(self.flatten(self.norm(images, training=training)))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def build(network=None, average=DECAY, attack=None, **compile_arguments):
    arguments = {"seed": 0, "weight_average": average} | ({"attack": attack} if attack else {})
    model = (km.AT if attack else km.Standard)(network or conv_network(), **arguments)
    model.compile(km.optimizers.SGD(0.1, momentum=0.9), **compile_arguments)
    return model


def fit(model, x=X, y=Y, **arguments):
    return model.fit(x, y, **({"batch_size": 4, "shuffle": False, "verbose": 0} | arguments)).history


def averages(raw, decay=DECAY):
    """Computes the average after each step from the weights after each step, all in float64."""
    found = []
    for number, weights in enumerate(raw):
        share = 1 - min(decay, number / (number + 9))
        mean = (
            weights if number == 0 else [(1 - share) * m + share * w for m, w in zip(found[-1], weights, strict=True)]
        )
        found.append([np.asarray(value, "float64") for value in mean])
    return found


def close(model, expected, **tolerance):
    for got, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(got, wanted, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"run_eagerly": True}],
    ids=str,
)
def test_the_average_after_each_step(arguments):
    model = build(**arguments)
    close(model.averaged_network, model.network.get_weights(), rtol=0, atol=0)
    raw, averaged = [], []

    def look(batch, logs):
        raw.append(model.network.get_weights())
        averaged.append(model.averaged_network.get_weights())

    fit(model, epochs=2, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=look)])
    assert len(raw) == 6 and 5 / 14 > DECAY > 1 / 10  # both branches of the decay
    for got, wanted in zip(averaged, averages(raw), strict=True):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    means = [layer.moving_mean.numpy() for layer in (model.network.layers[2], model.averaged_network.layers[2])]
    assert np.abs(means[0] - means[1]).max() > 1e-3


def test_training_uses_the_raw_weights():
    plain, averaging = build(average=None, attack=ATTACK), build(attack=ATTACK)
    assert plain.averaged_network is None
    assert fit(plain, epochs=2) == fit(averaging, epochs=2)
    close(averaging.network, plain.network.get_weights(), rtol=0, atol=0)
    assert len(averaging.trainable_variables) == len(plain.trainable_variables)
    for one, other in zip(plain.optimizer.variables, averaging.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_evaluation_uses_the_average(tmp_path):
    model = build(attack=ATTACK)
    fit(model)

    def say(model):
        model.averaged_network.layers[-1].bias.assign([0.0, 50.0, 0.0])  # always predicts 1
        model.network.layers[-1].bias.assign([50.0, 0.0, 0.0])

    say(model)
    share = np.mean(Y == 1)
    assert share != np.mean(Y == 0)

    assert (model.predict(X, verbose=0).argmax(1) == 1).all()
    assert (np.argmax(model(X), axis=1) == 1).all()
    judged = model.evaluate(X, Y, batch_size=4, verbose=0, return_dict=True)
    assert judged["natural_accuracy"] == judged["adversarial_accuracy"] == pytest.approx(share)
    again = keras.callbacks.LambdaCallback(on_test_begin=lambda logs: say(model))  # after the epoch's steps
    history = fit(model, validation_data=(X, Y), callbacks=[again])
    assert history["val_natural_accuracy"] == [pytest.approx(share)]
    assert history["natural_accuracy"][0] != pytest.approx(share)
    rows = km.evaluate(model, (X, Y), {"pgd": ATTACK}, verbose=0)
    assert rows["natural"] == pytest.approx(share)
    served = tf.saved_model.load(str(km.export(model, tmp_path))).signatures["serving_default"](images=tf.constant(X))
    np.testing.assert_allclose(served["logits"], model.averaged_network(X, training=False), rtol=1e-5)
    strong = km.PGD(km.Linf(0.1), steps=3, start="zero")
    np.testing.assert_array_equal(strong(model, X, Y), strong(model.averaged_network, X, Y))
    assert np.abs(strong(model, X, Y) - strong(model.network, X, Y)).max() > 0.05
    # Training attacks the raw network.
    np.testing.assert_array_equal(model.inference()(X), inference(model.network)(X))


def called():
    network = Subclassed()
    network(X)
    return network


@pytest.mark.parametrize("network", [unbuilt, called])
def test_saved_and_loaded(network, tmp_path):
    model = build(network(), run_eagerly=True)
    fit(model)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert loaded.weight_average == DECAY
    close(loaded.averaged_network, model.averaged_network.get_weights(), rtol=0, atol=0)
    close(loaded.network, model.network.get_weights(), rtol=0, atol=0)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    assert fit(model) == fit(loaded)  # without Dropout, whose seeds a `.keras` file does not include
    close(loaded.averaged_network, model.averaged_network.get_weights(), rtol=0, atol=0)


def test_two_replicas_equal_one_device(two_replicas):
    def run(strategy, **arguments):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            network = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
            model = build(network, **arguments)
        return model, fit(model, batch_size=7, epochs=2)

    one, two = run(tf.distribute.get_strategy(), run_eagerly=True), run(two_replicas)
    close(two[0].averaged_network, one[0].averaged_network.get_weights(), atol=1e-5)
    for variable in two[0].averaged_network.weights:
        held = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(*held)


@pytest.mark.parametrize(
    ("network", "first"),
    [
        (unbuilt, "fit"),
        (called, "fit"),
        *((Subclassed, first) for first in ("fit", "train_on_batch", "predict")),
    ],
)
def test_a_network_not_built_yet(network, first):
    model = build(network(), on_nan="skip")
    wrong, options = np.full(len(X), np.nan, "float32"), {"batch_size": len(X), "verbose": 0}
    if first == "predict":
        model.predict(X, verbose=0)
    else:
        getattr(model, first)(X, Y, sample_weight=wrong, **options if first == "fit" else {})
    close(model.averaged_network, model.network.get_weights(), rtol=0, atol=0)
    for variable in model.optimizer.variables:  # `skip` reverted all updates
        assert np.isfinite(np.asarray(variable.value)).all()
    assert np.isfinite(fit(model, sample_weight=np.ones_like(wrong), **options)["loss"]).all()


def test_counters_are_copied():
    norm = keras.layers.Normalization()
    norm.adapt(X)  # it counts examples, an integer
    layers = [norm, keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    model = build(keras.Sequential([keras.Input(SHAPE), *layers]))
    fit(model, epochs=2)
    close(model.averaged_network.layers[0], norm.get_weights(), rtol=1e-6)


# Layers with a state: separate, derived from their weights or kept outside them; or with random numbers.
def adapted(layer, data=X):
    layer.adapt(data)
    return layer


@keras.saving.register_keras_serializable("test_averaging")
class Levels(keras.layers.Layer):
    """Converts images to integers, or to strings."""

    def __init__(self, names=False, **kwargs):
        super().__init__(**kwargs)
        self.names = names

    def call(self, images):
        levels = tf.cast(images * 9, "int64")
        return tf.strings.as_string(levels) if self.names else levels

    def compute_output_spec(self, images):
        return keras.KerasTensor(images.shape, "string" if self.names else "int64")

    def get_config(self):
        return {**super().get_config(), "names": self.names}


LEVELS, L = np.arange(10), keras.layers
KEEPERS = {
    "normalization": lambda: [adapted(L.Normalization())],
    "normalization inside": lambda: [keras.Sequential([keras.Input(SHAPE), adapted(L.Normalization(axis=None))])],
    "given normalization": lambda: [L.Normalization(mean=0.4, variance=0.09)],
    "inverse normalization": lambda: [adapted(L.Normalization(invert=True))],
    "discretization": lambda: [adapted(L.Discretization(num_bins=4)), L.Rescaling(1.0)],
    "integer lookup": lambda: [Levels(), adapted(L.IntegerLookup(), LEVELS[2:7]), L.Rescaling(1.0)],
    "string lookup": lambda: [Levels(True), adapted(L.StringLookup(), LEVELS[2:7].astype(str)), L.Rescaling(1.0)],
    "given vocabulary": lambda: [Levels(), L.IntegerLookup(vocabulary=[4, 2]), L.Rescaling(1.0)],
    "hashing": lambda: [Levels(), L.Hashing(5), L.Rescaling(1.0)],
    "embedding": lambda: [Levels(), L.Embedding(10, 2)],
    "batch normalization": lambda: [L.BatchNormalization()],
    "batch renormalization": lambda: [L.BatchNormalization(renorm=True)],
    "group normalization": lambda: [L.Conv2D(4, 3), L.GroupNormalization(2), L.LayerNormalization()],
    "spectral normalization": lambda: [L.SpectralNormalization(L.Conv2D(4, 3))],
    "recurrent": lambda: [L.Reshape((6, 6)), L.Bidirectional(L.GRU(3, return_sequences=True))],
    "random numbers": lambda: [L.RandomFlip(), L.RandomZoom(0.1), L.GaussianNoise(0.1), L.GaussianDropout(0.1)],
    "dropout": lambda: [L.Dropout(0.3), L.SpatialDropout2D(0.3), L.AlphaDropout(0.3)],
}


def keeper(name):
    network = keras.Sequential([keras.Input(SHAPE), *KEEPERS[name](), L.Flatten(), L.Dense(CLASSES)])
    network(X, training=True)  # updates the states
    return network


def answers(network):
    return np.asarray(network(X, training=False))


@pytest.mark.parametrize("name", supported(KEEPERS))
def test_the_copy_has_the_networks_outputs(name, tmp_path):
    network = keeper(name)
    model = build(network)
    np.testing.assert_array_equal(answers(model.averaged_network), answers(network))
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    np.testing.assert_array_equal(answers(loaded.averaged_network), answers(network))
    np.testing.assert_array_equal(answers(loaded.network), answers(network))


def test_the_copy_of_a_network_of_keras_applications():
    network = keras.applications.MobileNetV3Small(
        weights=None, classes=CLASSES, classifier_activation=None, input_shape=(32, 32, 3)
    )
    images = images_and_labels(2, (32, 32, 3))[0]
    model = build(network)
    np.testing.assert_array_equal(model.averaged_network(images), network(images))


def test_a_layer_adapted_later_is_adapted_in_the_copy_too():
    norm = L.Normalization()
    model = build(keras.Sequential([keras.Input(SHAPE), norm, L.Flatten(), L.Dense(CLASSES)]), average=0.9)
    fit(model)
    norm.adapt(5 * X + 3)
    fit(model, x=X, epochs=1)
    np.testing.assert_array_equal(model.averaged_network.layers[0](X), norm(X))


class Dense(keras.layers.Dense):
    """Has the name of a Keras layer."""

    def call(self, images):
        return 10 * super().call(images)


def test_classes_with_the_same_name_are_not_confused():
    network = keras.Sequential([keras.Input(SHAPE), L.Flatten(), Dense(4), L.Dense(CLASSES)])
    np.testing.assert_array_equal(answers(build(network).averaged_network), answers(network))

    def made_here(factor):
        class Local(L.Layer):
            def call(self, images):
                return factor * images

        return Local()

    network = keras.Sequential([keras.Input(SHAPE), made_here(1), made_here(2), L.Flatten(), L.Dense(CLASSES)])
    with pytest.raises(ValueError, match="other classes of the same names"):
        build(network)


class Holding(L.Layer):
    """Keeps its layer where a model's `layers` do not list it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.Normalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, images):
        return self.norm(images)


def test_a_hidden_layer_adapted_later_is_adapted_in_the_copy_too():
    holding = Holding()
    model = build(keras.Sequential([keras.Input(SHAPE), holding, L.Flatten(), L.Dense(CLASSES)]))
    holding.norm.adapt(5 * X + 3)
    model.predict(X, verbose=0)
    np.testing.assert_array_equal(answers(model.averaged_network), answers(model.network))


def test_an_adapted_network_that_is_not_built_yet():
    @keras.saving.register_keras_serializable("test_averaging")
    class Adapted(Subclassed):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.norm = L.Normalization()

        def call(self, images):
            return self.dense(self.flatten(self.norm(images)))

    network = Adapted()
    network.norm.adapt(X)
    model = build(network)
    model.predict(X, verbose=0)
    np.testing.assert_array_equal(answers(model.averaged_network), answers(network))


@pytest.mark.parametrize("average", [0, 1, -0.5, 1.5])
def test_a_bad_decay_is_refused(average):
    with pytest.raises(ValueError, match=f"decay between 0 and 1. Received: weight_average={average}"):
        build(average=average)


def test_a_network_that_cannot_be_copied_is_refused():
    with pytest.raises(ValueError, match=r"`get_config`\. Received.*Plain"):
        build(Plain())
