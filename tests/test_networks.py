"""Adapted Keras classifiers: outputs, weights, saving, export, and errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_mart as km
from keras_mart import checks, networks

IMAGES = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype("float32")


def functional(end, shape=(8, 8, 3), **kwargs):
    images = keras.Input(shape, **kwargs)
    x = layers.Conv2D(4, 3, strides=2)(images)
    x = layers.Flatten()(layers.BatchNormalization()(x))
    return keras.Model(images, end(x), name="somebody")


def sequential(*end):
    return keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), *end])


def softmax(logits):
    return np.asarray(ops.softmax(logits))


ENDS = {
    "dense": lambda: functional(layers.Dense(5, activation="softmax")),
    "sequential": lambda: sequential(layers.Dense(5, activation="softmax")),
    "nested": lambda: sequential(keras.Sequential([layers.Dense(6), layers.Dense(5, activation="softmax")])),
    "layer": lambda: functional(lambda x: layers.Softmax()(layers.Dense(5)(x))),
    "operation": lambda: functional(lambda x: ops.softmax(layers.Dense(5)(x))),
    "float32 activation": lambda: functional(
        lambda x: layers.Activation("softmax", dtype="float32")(layers.Dense(5, dtype="mixed_bfloat16")(x))
    ),
    "sigmoid": lambda: functional(layers.Dense(1, activation="sigmoid")),
    "sigmoid operation": lambda: functional(lambda x: ops.sigmoid(layers.Dense(1)(x))),
}


@pytest.mark.parametrize("end", ENDS)
def test_logits_are_those_behind_the_probabilities(end, tmp_path):
    model = ENDS[end]()
    network = networks.logits_of(model)
    probabilities = np.asarray(model(IMAGES, training=False))
    if "sigmoid" in end:
        probabilities = np.concatenate([1 - probabilities, probabilities], axis=1)
    logits = np.asarray(network(IMAGES, training=False))
    np.testing.assert_allclose(softmax(logits), probabilities, atol=1e-6)
    assert {id(each) for each in network.weights} == {id(each) for each in model.weights}
    assert network.name == model.name
    km.AT(network, attack=km.PGD(km.Linf(0.1), steps=1))  # checks the network
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(IMAGES, training=False), logits)


def test_the_given_model_keeps_its_activation():
    model = ENDS["dense"]()
    before = np.asarray(model(IMAGES, training=False))
    networks.logits_of(model)
    np.testing.assert_array_equal(model(IMAGES, training=False), before)


def test_logits_stay_as_they_are():
    model = functional(layers.Dense(5))
    assert networks.logits_of(model) is model


def test_a_recorded_training_false_is_kept():
    base, images = sequential(layers.BatchNormalization()), keras.Input((8, 8, 3))
    model = keras.Model(images, layers.Dense(3, activation="softmax")(base(images, training=False)))
    config = str(networks.logits_of(model).get_config())
    assert "'training': False" in config


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"scale": 255}, lambda x: x * 255),
        ({"mean": [0.1, 0.2, 0.3], "std": 0.5}, lambda x: (x - np.float32([0.1, 0.2, 0.3])) / 0.5),
        ({"preprocessing": "tf"}, lambda x: keras.applications.mobilenet.preprocess_input(255 * x)),
        ({"preprocessing": "torch"}, lambda x: keras.applications.densenet.preprocess_input(255 * x)),
        ({"preprocessing": "caffe"}, lambda x: keras.applications.resnet.preprocess_input(255 * x)),
    ],
)
def test_images_are_normalised_inside(arguments, expected, tmp_path):
    model = functional(layers.Dense(5))
    network = networks.on_unit_images(model, **arguments)
    wanted = np.asarray(model(expected(IMAGES.copy()), training=False))
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(network(IMAGES, training=False)) / scale, wanted / scale, atol=1e-6)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(IMAGES, training=False), network(IMAGES, training=False))


@pytest.mark.parametrize(("size", "block"), [((15, 12), 1), ((6, 8), 1), ((17, 20), 2)])
def test_images_are_resized_inside(size, block):
    model = functional(layers.Dense(5))
    network = networks.resized(model, size)
    images = tf.random.stateless_uniform((2, *size, 3), (0, 1))
    fitting = tf.image.resize(tf.nn.avg_pool2d(images, block, block, "SAME"), (8, 8))
    # Called without `training`: no layer before the model may put it into training mode.
    np.testing.assert_allclose(network(images), model(fitting), atol=1e-6)


def test_open_sizes_and_equal_ones_need_no_resizing():
    open_size = keras.Sequential(
        [layers.Input((None, None, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )
    fixed = functional(layers.Dense(5))
    assert networks.resized(open_size, (9, 9)) is open_size
    assert networks.resized(fixed, (8, 8)) is fixed


@pytest.mark.parametrize("end", [layers.Dense(5), lambda x: keras.Sequential([layers.Dense(5)])(x)])
def test_another_number_of_classes_gets_a_new_last_layer(end):
    model = functional(end)
    network = networks.with_classes(model, 3)
    assert network.output_shape == (None, 3)
    shared = {id(each) for each in network.weights} & {id(each) for each in model.weights}
    assert len(shared) == len(model.weights) - 2
    assert networks.with_classes(model, 5) is model


@pytest.mark.parametrize("end", ENDS)
def test_another_number_of_classes_behind_every_end(end):
    model = ENDS[end]()
    network = networks.with_classes(model, 3)
    assert network.output_shape == (None, 3) and not checks.squashes(network)
    same = networks.with_classes(model, 2 if "sigmoid" in end else 5)
    np.testing.assert_array_equal(same(IMAGES), networks.logits_of(model)(IMAGES))


def test_a_subclassed_network_of_the_right_number_of_classes_is_taken():
    network = Subclassed()
    network(IMAGES)
    assert networks.adapted(network, (8, 8, 3), num_classes=3)[0] is network
    with pytest.raises(ValueError, match="must be a functional or Sequential network"):
        networks.adapted(network, (8, 8, 3), num_classes=4)


def test_images_of_one_channel_are_normalised_to_minus_one_and_one():
    network = networks.on_unit_images(functional(layers.Dense(3), shape=(8, 8, 1)), "tf")
    inner = network.layers[-1]
    np.testing.assert_allclose(network(IMAGES[..., :1]), inner(2 * IMAGES[..., :1] - 1), atol=1e-5)


def test_adapted_says_what_was_done_and_is_attacked_and_exported(tmp_path):
    model = functional(layers.Dense(5, activation="softmax"))
    network, done = networks.adapted(model, (16, 16, 3), preprocessing=255, num_classes=4)
    assert len(done) == 4
    assert "images of 16x16" in done[-1]
    images = tf.random.stateless_uniform((2, 16, 16, 3), (0, 1))
    attack = km.PGD(km.Linf(0.1), steps=2)
    adversarial = attack(network, images, [0, 1], seed=0)
    assert 0.09 < float(tf.reduce_max(tf.abs(adversarial - images))) <= 0.1 + 1e-6
    path = km.export(network, tmp_path)
    served = tf.saved_model.load(str(path)).signatures["serving_default"](images=images)["logits"]
    np.testing.assert_allclose(served, network(images, training=False), rtol=1e-5, atol=1e-5)


def test_application_takes_unit_images_and_weights_of_another_number_of_classes(tmp_path):
    shape = (32, 32, 3)
    known = keras.applications.MobileNet(input_shape=shape, weights=None, classes=7, classifier_activation=None)
    known.save_weights(tmp_path / "known.weights.h5")
    images = np.random.default_rng(0).uniform(size=(2, *shape)).astype("float32")
    wanted = known(keras.applications.mobilenet.preprocess_input(255 * images), training=False)
    same = networks.application("MobileNet", 7, shape, tmp_path / "known.weights.h5")
    np.testing.assert_allclose(same(images, training=False), wanted, atol=1e-5)
    other = networks.application("MobileNet", 3, shape, tmp_path / "known.weights.h5")
    assert other.output_shape == (None, 3)
    for own, given in zip(other.weights[:-2], known.weights[:-2], strict=True):
        np.testing.assert_array_equal(own, given)
    functional(layers.Dense(3)).save_weights(tmp_path / "of_another.weights.h5")
    with pytest.raises(ValueError, match="cannot be built"):
        networks.application("MobileNet", 7, shape, tmp_path / "of_another.weights.h5")


def test_preprocessing_of_all_applications_is_known():
    for name in networks.application_names():
        assert networks.applications._preprocessing(getattr(keras.applications, name))


class Subclassed(keras.Model):
    def call(self, images):
        return 2 * ops.mean(images, (1, 2)) - 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: networks.logits_of(functional(layers.Dense(3), dtype="uint8")), "whose input .* is uint8"),
        (lambda: networks.logits_of(functional(layers.Dense(3), shape=(3, 8, 8))), r"\(None, 3, 8, 8\)"),
        (lambda: networks.logits_of(sequential(layers.Reshape((4, -1)), layers.Softmax(1))), "over axis 1"),
        (lambda: networks.on_unit_images(Subclassed(), scale=255), "must be built"),
        (lambda: networks.on_unit_images(functional(layers.Dense(3))), "takes either"),
        (lambda: networks.on_unit_images(functional(layers.Dense(3)), "tf", scale=255), "takes either"),
        (lambda: networks.on_unit_images(functional(layers.Dense(3)), "tff"), "Did you mean 'tf'"),
        (lambda: networks.on_unit_images(functional(layers.Dense(3)), mean=[1, 2]), "one for each of the 3 channels"),
        (lambda: networks.on_unit_images(functional(layers.Dense(3)), std=0), "must be positive"),
        (lambda: networks.with_classes(functional(layers.ReLU()), 3), "the last layer must be a Dense layer"),
        (lambda: networks.application("MobileNetV2", 3, (16, 16, 3)), "at least 32x32"),
        (lambda: networks.application("MobilNetV2", 3, (32, 32, 3)), "Did you mean 'MobileNetV2'"),
        (lambda: networks.application("MobileNetV2", 3, (32, 32, 3), "no.h5"), "existing file. Received: no.h5"),
    ],
)
def test_models_that_cannot_be_adapted_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
