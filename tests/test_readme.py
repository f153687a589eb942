"""Documents: their Python runs as it stands there, their links lead somewhere, the table of methods is complete."""

import functools
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import conv_network

import keras_mart as km
from keras_mart.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]


def examples(page):
    """Returns the Python examples of a page, compiled one by one."""
    found = re.findall(r"```python\n(.+?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [compile(example, page, "exec") for example in found]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An empty folder to run in, two batches of each split, a small network, and the first part of AutoAttack."""
    monkeypatch.chdir(tmp_path)
    load, wide_resnet = km.datasets.load, km.zoo.wide_resnet

    def small_network(*args, **options):
        known = wide_resnet(*args, **options)
        return conv_network(known.input_shape[1:], known.output_shape[1])

    monkeypatch.setattr(km.datasets, "load", lambda *args, **options: load(*args, **options).take(2))
    monkeypatch.setattr(km.zoo, "wide_resnet", small_network)
    monkeypatch.setattr("keras_mart.attacks.autoattack.VERSIONS", {"standard": ("apgd-ce",)})
    keras.utils.set_random_seed(0)
    return tmp_path


def test_the_readmes_examples_run(small, capsys):
    classifier = [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    keras.Sequential(classifier).save("classifier.keras")
    names = {}
    for example in examples("README.md"):
        exec(example, names)
        assert "natural" in capsys.readouterr().out
    assert (small / "hardened.keras").exists()
    assert {"natural", "pgd20", "autoattack"} <= names["table"].accuracy.keys()


def test_the_training_pages_examples_run(small, capsys):
    names = {}
    program, *others = examples("docs/training.md")
    exec(program, names)
    assert "natural" in capsys.readouterr().out
    assert names["adversarial"].shape == names["images"].shape
    assert float(km.Linf(1).distance(names["adversarial"], names["images"]).numpy().max()) <= 0.15 + 1e-6
    assert (small / "best.keras").exists() and (small / "serving/digits/1/saved_model.pb").exists()
    for example in others:
        exec(example, names)
    assert "val_adversarial_accuracy" in names["history"].history and (small / "trades.keras").exists()


def test_the_pages_about_data_run(small):
    names = {}
    for example in examples("docs/data.md"):
        exec(example, names)
    assert names["batch"].shape == (16, 16, 16, 3) and "pgd20" in names["table"].accuracy
    for example in examples("docs/extra_data.md"):
        exec(example, names)
    assert next(iter(names["mixed"]))[0].shape == (64, 8, 8, 1)


def test_attacks_of_ones_own_run(small):
    names = {}
    for example in examples("docs/own_attack.md"):
        exec(example, names)
    distance = km.Linf(1).distance(names["adversarial"], names["images"]).numpy()
    assert 0 < distance.min() and distance.max() <= 0.15 + 1e-6
    assert "contrast" in names["table"].accuracy and int(names["model"].step) == 2


def test_the_step_written_plainly_is_the_methods_own(monkeypatch):
    initial = []

    def network():
        layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.Flatten()]
        return keras.Sequential([keras.layers.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])

    def remembered(*args, **options):
        found = network()
        initial.extend(found.get_weights())
        return found

    monkeypatch.setattr(km.zoo, "wide_resnet", remembered)
    names = {}
    for example in examples("docs/how_it_works.md"):
        exec(example, names)

    class Given(km.MART):
        def perturb(self, x, labels, seed, index=None):
            return names["adversarial"], self.attack.threat.epsilon

    same = network()
    same.set_weights(initial)
    model = Given(same, names["attack"])
    model.compile(km.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4))
    model.train_on_batch(names["images"], names["labels"])
    for value, start, plain in zip(same.get_weights(), initial, names["network"].get_weights(), strict=True):
        assert np.allclose(value, plain, atol=1e-5) and not np.array_equal(plain, start)


def test_methods_of_ones_own_run(small):
    names = {}
    for example in examples("docs/methods.md"):
        exec(example, names)
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
    for example in examples("docs/recipes.md"):
        exec(example, names)
    assert [type(each) for each in fitted] == [km.AT, km.AT, km.TRADES, km.DKL, km.TRADES, km.HAT, km.RSLAD, km.TRADES]
    assert fitted[0].attack_mode == "training" and fitted[3].weight_perturbation == km.AWP(0.005, warmup=10)
    assert fitted[4].label_smoothing == 0.1 and fitted[4].optimizer.nesterov


@pytest.mark.parametrize("page", ["README.md", "docs/formulas.md", "docs/methods.md"])
def test_every_method_is_in_the_table(page):
    rows = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]
    for method in METHODS.values():
        assert any(f"`{method.__name__}`" in row for row in rows)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))])
def test_links_lead_somewhere(page):
    page = ROOT / page
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!http|#)([^)#]+)", prose)
    assert len(targets) > 3 or page.name != "README.md"
    assert not [target for target in targets if not (page.parent / target).exists()]
