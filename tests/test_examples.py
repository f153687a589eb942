"""Runs each example as a user would, at a small size."""

import json
import pathlib
import re
import runpy
import sys
from unittest import mock

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf

import keras_mart as km

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
MOST_LINES = 60
MOST_BYTES = 300_000  # of the notebook with its pictures


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """A function that runs a program in this process (importing TensorFlow takes seconds) and returns its output."""

    def run(name, *arguments):
        path = EXAMPLES / f"{name}.py"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        try:
            runpy.run_path(str(path))
        except SystemExit as end:
            assert not end.code, capfd.readouterr().err
        return capfd.readouterr().out

    return run


@pytest.fixture
def model(tmp_path):
    """Path of a network that expects images in [0, 255] and ends in a softmax."""
    network = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.Flatten()])
    network.add(keras.layers.Dense(10, activation="softmax"))
    network.save(tmp_path / "somebodys.keras")
    return tmp_path / "somebodys.keras"


def small(classes, shape):
    layers = [keras.layers.Conv2D(4, 3, strides=4), keras.layers.BatchNormalization(), keras.layers.Flatten()]
    return keras.Sequential([keras.layers.Input(shape), *layers, keras.layers.Dense(classes)])


def photograph(path, seed, size=(40, 36, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size).astype("uint8")
    path.write_bytes(tf.io.encode_jpeg(pixels).numpy())


def test_each_is_short_and_tested_here():
    here = pathlib.Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= MOST_LINES
        assert f"def test_{path.stem}(" in here


def test_harden_folder(run, tmp_path, monkeypatch):
    for number in range(24):
        photograph(
            tmp_path / "photos" / ("cat" if number % 2 else "dog") / f"{number}.jpg", number, (40, 36 + number, 3)
        )
    # Replaces the network of keras.applications, which takes half a minute.
    made = mock.Mock(
        side_effect=lambda name, classes, shape, weights: km.networks.on_unit_images(small(classes, shape), "tf")
    )
    monkeypatch.setattr(km.networks, "application", made)
    arguments = ["photos", "--network=MobileNet", "--weights=none", "--image_size=32", "--epochs=1", "--batch_size=8"]
    out = run("harden_folder", *arguments)
    made.assert_called_with("MobileNet", 2, (32, 32, 3), "none")
    assert "TRADES" in out and "robust" in out
    assert isinstance(keras.saving.load_model(tmp_path / "hardened.keras"), km.TRADES)


def test_judge_model(run, model):
    out = run("judge_model", model, "--scale=255", "--examples=16")
    for said in ("last activation is removed", "multiplied by 255", "autoattack", "epsilon  8/255", "passed"):
        assert said in out


def test_own_method(run, tmp_path, monkeypatch):
    load = km.datasets.load
    monkeypatch.setattr(km.datasets, "load", lambda *args, **_: load(*args, batch_size=8).take(2))
    monkeypatch.setattr(km.zoo, "wide_resnet", lambda *args, num_classes, input_shape: small(num_classes, input_shape))
    out = run("own_method", "--epochs=1", "--smoothing=0.2")
    assert "pgd20" in out
    assert (tmp_path / "smoothed.keras").exists()


def test_multi_worker(run, tmp_path):
    out = run("multi_worker", "--workers=2", "--epochs=1")
    assert "worker 1 of 2" in out
    assert int(keras.saving.load_model(tmp_path / "together.keras").step.numpy()) > 0


def test_serve(run, tmp_path):
    network = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    network.save(tmp_path / "model.keras")
    photograph(tmp_path / "cat.jpg", 0, (8, 8, 3))
    out = run("serve", "model.keras", "cat.jpg")
    pixels = tf.io.decode_jpeg((tmp_path / "cat.jpg").read_bytes(), dct_method="INTEGER_ACCURATE")
    probabilities = keras.ops.softmax(network(pixels[None] / 255))[0]
    assert f"cat.jpg: class {np.argmax(probabilities)}, probability {np.max(probabilities):.4f}" in out


def test_quickstart(tmp_path, monkeypatch, capsys):
    """Runs its unchanged code on two batches of each split, with a small network."""
    path = EXAMPLES / "quickstart.ipynb"
    cells = json.loads(path.read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for name, number in {"EPOCHS": 2, "EXAMPLES": 16}.items():
        code, found = re.subn(rf"^{name} = \d+", f"{name} = {number}", code, flags=re.MULTILINE)
        assert found == 1
    load = km.datasets.load
    monkeypatch.setattr(km.datasets, "load", lambda *args, **options: load(*args, **options).take(2))
    monkeypatch.setattr(km.zoo, "wide_resnet", lambda *args, input_shape: small(10, input_shape))
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    exec(compile(code, str(path), "exec"), {})
    drawn = [len(plt.figure(number).axes) for number in plt.get_fignums()]
    plt.close("all")
    assert drawn == [2, 24, 24, 1, 2]  # the curves, two galleries of three rows of 8 images, epsilon, the confusions
    assert capsys.readouterr().out.count("fmn") == 2
    assert isinstance(keras.saving.load_model(tmp_path / "digits-mart.keras"), km.MART)


def test_quickstart_is_saved_with_its_outputs():
    """As GitHub shows it: all pictures, no errors, and a small file."""
    path = EXAMPLES / "quickstart.ipynb"
    assert path.stat().st_size <= MOST_BYTES
    outputs = [each for cell in json.loads(path.read_text())["cells"] for each in cell.get("outputs", ())]
    assert {each["output_type"] for each in outputs} == {"stream", "display_data"}
    assert sum("image/png" in each.get("data", ()) for each in outputs) == 5
