"""Tests of exported models: their outputs, also in processes without this package, and invalid exports; loading."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import Plain, linear_network

import keras_mart as km
from keras_mart import serving

HEIGHT = WIDTH = 8
# TensorFlow's graph optimiser turns x / 255 into x * (1 / 255), which rounds once more.
ROUNDING = 1e-7

CONSUMER = """
import sys
import numpy as np
import tensorflow as tf

served = tf.saved_model.load(sys.argv[1])
assert not [name for name in sys.modules if name.split(".")[0] in ("keras", "tf_keras", "keras_mart")]
sent = np.load(sys.argv[2], allow_pickle=False)
default, encoded = served.signatures["serving_default"], served.signatures["serve_encoded"]
answers = {f"default_{name}": value.numpy() for name, value in default(images=sent["images"]).items()}
answers["one"] = default(images=sent["images"][:1])["logits"].numpy()
files = [sent["png"].tobytes(), sent["jpeg"].tobytes()]
answers |= {f"encoded_{name}": value.numpy() for name, value in encoded(encoded=tf.constant(files)).items()}
np.savez(sys.argv[3], **answers)
"""


@keras.saving.register_keras_serializable("test_serving")
class Wrapper(keras.Model):
    """Stands in for a method: `export` uses only its `.network`."""

    wraps_network = True

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, images, training=None):
        return self.network(images, training=training)


def small_network(shape=(HEIGHT, WIDTH, 3), **options):
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(4, 3, activation="relu", **options),
            keras.layers.BatchNormalization(**options),
            keras.layers.Dropout(0.5, **options),
            keras.layers.GlobalAveragePooling2D(**options),
            keras.layers.Dense(4, **options),
        ]
    )


def images_as_logits(channels=3):
    """Returns a network whose logits are the values of its input."""
    return keras.Sequential([keras.Input((HEIGHT, WIDTH, channels)), keras.layers.Flatten()])


def halved(pixels):
    """Resizes to half the height and width; bilinear resizing then takes the mean of each 2x2 block."""
    height, width, channels = pixels.shape
    return pixels.astype(np.float32).reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels):
    return tf.io.encode_png(pixels).numpy()


def served(path, signature="serving_default"):
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures[signature]
    return lambda **inputs: {name: value.numpy() for name, value in function(**inputs).items()}


def served_encoded(path, *files):
    return served(path, "serve_encoded")(encoded=tf.constant(files))


@pytest.fixture(scope="module")
def trained():
    """A wrapped, trained network, whose BatchNorm statistics differ from their initial values."""
    model = Wrapper(small_network())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(random_images(16, HEIGHT, WIDTH, 3), np.arange(16) % 4, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def version(trained, tmp_path_factory):
    return serving.export(trained, tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def network():
    return small_network()


def visible_versions(directory):
    return sorted((name for name in os.listdir(directory) if name.isdigit()), key=int)


def test_a_process_with_tensorflow_only_answers_as_predict_does(trained, version, tmp_path):
    images = random_images(5, HEIGHT, WIDTH, 3, seed=1)
    pixels = random_pixels(HEIGHT, WIDTH, 3)
    larger = random_pixels(2 * HEIGHT, 2 * WIDTH, 3)
    jpeg = tf.io.encode_jpeg(larger, quality=95).numpy()
    np.savez(
        tmp_path / "sent.npz",
        images=images,
        png=np.frombuffer(png(pixels), np.uint8),
        jpeg=np.frombuffer(jpeg, np.uint8),
    )
    # With this variable set, `import tensorflow` itself imports no Keras either.
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": ""}
    arguments = [str(version), str(tmp_path / "sent.npz"), str(tmp_path / "answers.npz")]
    command = [sys.executable, "-c", CONSUMER, *arguments]
    consumer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert consumer.returncode == 0, consumer.stderr
    answers = np.load(tmp_path / "answers.npz")

    logits = trained.predict(images, verbose=0)
    np.testing.assert_allclose(answers["default_logits"], logits, atol=1e-5)
    np.testing.assert_allclose(answers["one"], logits[:1], atol=1e-5)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers["default_probabilities"], probabilities, atol=1e-5)
    np.testing.assert_array_equal(answers["default_classes"], logits.argmax(axis=1))
    assert answers["default_classes"].dtype == np.int64

    decoded = halved(tf.io.decode_jpeg(jpeg, dct_method="INTEGER_ACCURATE").numpy())
    expected = trained.predict(np.stack([pixels.astype(np.float32), decoded]) / 255, verbose=0)
    np.testing.assert_allclose(answers["encoded_logits"], expected, atol=1e-5)
    np.testing.assert_array_equal(answers["encoded_classes"], expected.argmax(axis=1))


def test_only_the_network_is_written(trained, version):
    checkpoint = tf.train.list_variables(str(version / "variables" / "variables"))
    shapes = sorted(shape for name, shape in checkpoint if name.endswith("VARIABLE_VALUE"))
    assert shapes == sorted(list(variable.shape) for variable in trained.network.weights)


def test_a_file_of_the_right_size_is_only_divided_by_255(tmp_path):
    pixels = random_pixels(2, HEIGHT, WIDTH, 3)
    seen = served_encoded(serving.export(images_as_logits(), tmp_path), *map(png, pixels))["logits"]
    np.testing.assert_allclose(seen, pixels.reshape(2, -1) / 255, rtol=0, atol=ROUNDING)


def test_a_file_of_another_size_is_resized(tmp_path):
    pixels = random_pixels(2 * HEIGHT, 2 * WIDTH, 3)
    seen = served_encoded(serving.export(images_as_logits(), tmp_path), png(pixels))["logits"]
    np.testing.assert_allclose(seen, halved(pixels).reshape(1, -1) / 255, atol=1e-6)


def test_files_take_the_channels_of_the_network(tmp_path):
    grey = random_pixels(HEIGHT, WIDTH, 1)
    as_rgb = np.repeat(grey, 3, axis=-1)
    opaque = np.concatenate([as_rgb, np.full_like(grey, 255)], axis=-1)
    files = [png(pixels) for pixels in (grey, as_rgb, opaque)]
    for pixels in (grey, as_rgb):
        network = images_as_logits(channels=pixels.shape[-1])
        seen = served_encoded(serving.export(network, tmp_path), *files)["logits"]
        np.testing.assert_allclose(seen, np.tile(pixels.reshape(1, -1) / 255, (3, 1)), rtol=0, atol=ROUNDING)


def test_no_encoded_signature_for_channels_that_files_do_not_have(tmp_path):
    path = serving.export(small_network((HEIGHT, WIDTH, 5)), tmp_path)
    assert list(tf.saved_model.load(str(path)).signatures) == ["serving_default"]


def test_a_network_of_open_size_takes_files_of_any_one_size(tmp_path):
    network = small_network((None, None, 3))
    pixels = random_pixels(2, 11, 9, 3)
    answers = served_encoded(serving.export(network, tmp_path), *map(png, pixels))
    expected = network.predict(pixels.astype(np.float32) / 255, verbose=0)
    np.testing.assert_allclose(answers["logits"], expected, atol=1e-5)


def test_a_subclassed_model_built_by_its_first_call(tmp_path):
    model = Plain()
    images = random_images(2, HEIGHT, WIDTH, 3)
    logits = model(images).numpy()
    np.testing.assert_allclose(served(serving.export(model, tmp_path))(images=images)["logits"], logits, atol=1e-5)


def test_tensors_that_a_layer_keeps_are_written_too(tmp_path):
    model = keras.Sequential(
        [keras.layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]), small_network()]
    )
    images = random_images(2, HEIGHT, WIDTH, 3)
    logits = model(images).numpy()
    np.testing.assert_allclose(served(serving.export(model, tmp_path))(images=images)["logits"], logits, atol=1e-5)


@pytest.mark.parametrize("inside_scope", [False, True])
def test_a_network_of_a_mirrored_strategy(inside_scope, tmp_path, two_replicas):
    with two_replicas.scope():
        network = small_network()
        path = serving.export(network, tmp_path) if inside_scope else None
    path = path or serving.export(network, tmp_path)
    images = random_images(2, HEIGHT, WIDTH, 3)
    expected = network(images, training=False).numpy()
    np.testing.assert_allclose(served(path)(images=images)["logits"], expected, atol=1e-5)


def test_mixed_precision_answers_in_float32(tmp_path):
    network = small_network(dtype="mixed_bfloat16")
    images = random_images(3, HEIGHT, WIDTH, 3)
    answers = served(serving.export(network, tmp_path))(images=images)
    assert answers["logits"].dtype == answers["probabilities"].dtype == np.float32
    np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1, atol=1e-6)
    logits = keras.ops.convert_to_numpy(keras.ops.cast(network(images, training=False), "float32"))
    np.testing.assert_allclose(answers["logits"], logits, atol=1e-5)


def test_each_export_is_the_next_version(network, tmp_path):
    directory = tmp_path / "not" / "there"
    assert serving.export(network, str(directory)) == directory / "1"
    assert serving.export(network, directory) == directory / "2"
    (directory / "9").mkdir()
    (directory / "10").write_text("a file takes its number too")
    for name in ("12b", "-13", ".14", "latest"):
        (directory / name).mkdir()
    assert serving.export(network, directory) == directory / "11"
    assert visible_versions(directory) == ["1", "2", "9", "10", "11"]
    assert not [name for name in os.listdir(directory) if name.startswith(".export")]


def test_a_version_has_the_usual_permissions(network, tmp_path):
    (tmp_path / "ordinary").mkdir()
    assert serving.export(network, tmp_path).stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_version_taken_in_between_is_not_overwritten(network, tmp_path, monkeypatch):
    rename = os.rename

    def rename_after_another_export(source, target):
        monkeypatch.setattr(os, "rename", rename)
        target.mkdir()
        (target / "saved_model.pb").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_after_another_export)
    assert serving.export(network, tmp_path) == tmp_path / "2"
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "theirs"
    assert (tmp_path / "2" / "saved_model.pb").stat().st_size > 0


def test_no_version_is_visible_before_it_is_complete(network, tmp_path, monkeypatch):
    save, seen = tf.saved_model.save, []

    def watched_save(*arguments, **options):
        save(*arguments, **options)
        seen.append(visible_versions(tmp_path))

    monkeypatch.setattr(tf.saved_model, "save", watched_save)
    serving.export(network, tmp_path)
    assert seen == [[]] and visible_versions(tmp_path) == ["1"]


@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_nothing(failure, network, tmp_path, monkeypatch):
    def failing_save(module, path, **options):
        os.makedirs(path)
        with open(os.path.join(path, "saved_model.pb"), "w") as half:
            half.write("half")
        raise failure

    monkeypatch.setattr(tf.saved_model, "save", failing_save)
    with pytest.raises(type(failure)):
        serving.export(network, tmp_path)
    assert os.listdir(tmp_path) == []


def two_outputs():
    images = keras.Input((HEIGHT, WIDTH, 3))
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(images))
    return keras.Model(images, [logits, logits])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: keras.Sequential([keras.layers.Dense(2)]), "must be built: call it on a batch of images or fit it"),
        (Plain, "must be built"),
        (lambda: Wrapper(Plain()), "must be built"),
        (lambda: "model.keras", "must be a keras.Model"),
        (lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), r"input shape \(None, 4\)"),
        (lambda: keras.Sequential([small_network(), keras.layers.Softmax()]), "must return logits"),
        (lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Dense(2)]), r"\[batch, classes\]"),
        (two_outputs, r"\[batch, classes\]"),
    ],
)
def test_models_that_cannot_be_served(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        serving.export(model(), tmp_path / "serving")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_directory_that_is_a_file(name, network, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"must be a folder that can be written\. Received: directory=.*file"):
        serving.export(network, tmp_path / name)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_directory_without_write_permission(network, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="must be a folder that can be written"):
        serving.export(network, tmp_path)
    assert os.listdir(tmp_path) == []


# --- load ---


def test_a_saved_model_answers_in_float32_under_any_policy(trained, version):
    images = random_images(3, HEIGHT, WIDTH, 3)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        loaded = serving.load(version)
    finally:
        keras.config.set_dtype_policy("float32")
    logits = trained.network(images, training=False)
    np.testing.assert_allclose(loaded(images), logits, atol=1e-5)
    np.testing.assert_allclose(loaded(tf.constant(images)), logits, atol=1e-5)


@pytest.mark.parametrize("form", ["keras file", "version", "folder of versions", "of Keras itself"])
def test_a_loaded_classifier_answers_and_has_gradients(form, trained, version, tmp_path):
    if form == "keras file":
        trained.network.save(tmp_path / "model.keras")
        path = tmp_path / "model.keras"
    elif form == "of Keras itself":
        path = tmp_path / "saved"
        trained.network.export(path, verbose=False)
    else:
        path = version if form == "version" else version.parent
    loaded, images = serving.load(path), tf.constant(random_images(3, HEIGHT, WIDTH, 3))

    def answer(model):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = model(images, training=False)
        return logits, tape.gradient(logits, images)

    for got, wanted in zip(answer(loaded), answer(trained), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_the_newest_version_is_loaded(tmp_path):
    (tmp_path / "8").mkdir()
    for bias in (2, 1):  # versions 9 and 10
        serving.export(linear_network(np.zeros((64, 2)), [bias, 0], (8, 8, 1)), tmp_path)
    assert serving.load(tmp_path)(np.zeros((1, 8, 8, 1), "float32"))[0, 0] == 1


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(
        ValueError, match=r"must be a .keras or .h5 file or a SavedModel. Received: .*, which does not exist"
    ):
        serving.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="There must be a SavedModel in the folder"):
        serving.load(tmp_path)
    (tmp_path / "text.keras").write_text("no archive")
    with pytest.raises(ValueError, match=r"must be a .keras or .h5 file or a SavedModel"):
        serving.load(tmp_path / "text.keras")
    two_outputs().export(tmp_path / "two", verbose=False)
    with pytest.raises(ValueError, match=r"must take images and return logits. Received: .* to output_0, output_1"):
        serving.load(tmp_path / "two")


# --- Keras's own export ---


@pytest.mark.parametrize("average", [None, 0.9])
def test_the_export_method_of_keras_writes_the_evaluated_network(average, tmp_path):
    model = km.Standard(small_network(), weight_average=average)
    model.compile("sgd", run_eagerly=True)
    images = random_images(8, HEIGHT, WIDTH, 3)
    model.fit(images, np.arange(8) % 4, epochs=3, batch_size=4, verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(images), model.predict(images, verbose=0), atol=1e-5)


EVERY_ATTACK = {
    "pgd": km.PGD(km.Linf(0.1), 2, restarts=2),
    "cw": km.CW(km.L2(0.5), 2),
    "fgsm": km.FGSM(km.Linf(0.1)),
    "noise": km.Noise(km.Linf(0.1), 2),
    "apgd": km.APGDCE(km.Linf(0.1), 3),
    "apgd-t": km.APGDT(km.L2(0.5), 3),
    "fab": km.FABT(km.Linf(0.1), 3),
    "square": km.Square(km.Linf(0.1), 20),
}


def test_every_attack_takes_an_exported_network_of_open_size(tmp_path):
    network = small_network((None, None, 3))
    images = random_images(6, 9, 7, 3)
    labels = np.argmax(network(images), -1)
    loaded = serving.load(serving.export(network, tmp_path))
    expected = km.evaluate(network, (images, labels), EVERY_ATTACK, verbose=0)
    assert km.evaluate(loaded, (images, labels), EVERY_ATTACK, verbose=0).accuracy == expected.accuracy


def test_a_network_that_takes_channels_first_is_refused(tmp_path):
    images = keras.Input((3, 8, 9))
    network = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(images)))
    with pytest.raises(
        ValueError, match=r"must be \[batch, height, width, channels\].*\(None, 3, 8, 9\), which the net"
    ):
        serving.export(network, tmp_path)
