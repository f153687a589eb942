"""Documents: their Python runs as it stands there, their links lead somewhere, the table of methods is complete."""

import functools
import pathlib
import re

import keras
import pytest
import tensorflow as tf
from conftest import conv_network

import keras_mart as km
from keras_mart.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    """As they stand there, on two batches of each split, with a small network and the first part of AutoAttack."""
    monkeypatch.chdir(tmp_path)
    load, wide_resnet = km.datasets.load, km.zoo.wide_resnet

    def small(*args, **options):
        known = wide_resnet(*args, **options)
        return conv_network(known.input_shape[1:], known.output_shape[1])

    monkeypatch.setattr(km.datasets, "load", lambda *args, **options: load(*args, **options).take(2))
    monkeypatch.setattr(km.zoo, "wide_resnet", small)
    monkeypatch.setattr("keras_mart.attacks.autoattack.VERSIONS", {"standard": ("apgd-ce",)})
    keras.utils.set_random_seed(0)
    classifier = [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    keras.Sequential(classifier).save("classifier.keras")
    names = {}
    for example in re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL):
        exec(compile(example, "README.md", "exec"), names)
        assert "natural" in capsys.readouterr().out
    assert (tmp_path / "hardened.keras").exists()
    assert names["adversarial"].shape == names["images"].shape
    assert float(km.Linf(1).distance(names["adversarial"], names["images"]).numpy().max()) <= 0.15 + 1e-6
    assert (tmp_path / "best.keras").exists() and (tmp_path / "serving/digits/1/saved_model.pb").exists()


def test_methods_of_ones_own_run(monkeypatch):
    """As they stand there, on two small batches."""
    load = km.datasets.load
    small = lambda *args, **options: load(*args, **{**options, "batch_size": 8}).take(2)  # noqa: E731
    monkeypatch.setattr(km.datasets, "load", small)
    names = {}
    for example in re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "methods.md").read_text(), flags=re.DOTALL):
        exec(compile(example, "methods.md", "exec"), names)
    assert names["model"].gamma == 1.0 and int(names["model"].step) > 0


def test_recipes_are_compiled_and_fitted(tmp_path, monkeypatch):
    """As they stand there, on a batch of noise, with narrower networks and a `fit` that does nothing."""
    monkeypatch.chdir(tmp_path)
    images, labels = tf.random.uniform([4, 32, 32, 3]), tf.range(4)
    batches = tf.data.Dataset.from_tensors((images, labels))
    monkeypatch.setattr(km.datasets, "load", lambda *args, **options: batches)
    monkeypatch.setattr(km.datasets, "load_extra", lambda name: (images.numpy(), labels.numpy()))
    narrow = functools.partial(km.zoo.wide_resnet, 10, 1)
    monkeypatch.setattr(km.zoo, "wide_resnet", lambda depth, width, **options: narrow(**options))
    fitted = []
    monkeypatch.setattr(km.AdversarialModel, "fit", lambda self, *args, **options: fitted.append(self))
    classifier = [keras.layers.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)]
    for name in ("standard.keras", "best.keras"):
        keras.Sequential(classifier).save(name)
    names = {}
    for example in re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "recipes.md").read_text(), flags=re.DOTALL):
        exec(compile(example, "recipes.md", "exec"), names)
    assert [type(each) for each in fitted] == [km.AT, km.AT, km.TRADES, km.DKL, km.TRADES, km.HAT, km.RSLAD, km.TRADES]
    assert fitted[0].attack_mode == "training" and fitted[3].weight_perturbation == km.AWP(0.005, warmup=10)
    assert fitted[4].label_smoothing == 0.1 and fitted[4].optimizer.nesterov


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_every_method_is_in_the_table(page):
    rows = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]
    for method in METHODS.values():
        assert any(f"`{method.__name__}`" in row for row in rows)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    page = ROOT / page
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!http|#)([^)#]+)", prose)
    assert len(targets) > 3 or page.name != "README.md"
    assert not [target for target in targets if not (page.parent / target).exists()]
