"""The README's Python runs as it stands there, its links lead somewhere, and its table of methods is complete."""

import pathlib
import re

import keras

import keras_mart as km
from keras_mart.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    (example,) = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "natural" in capsys.readouterr().out
    assert names["adversarial"].shape == names["images"].shape
    assert float(km.Linf(1).distance(names["adversarial"], names["images"]).numpy().max()) <= 0.15 + 1e-6
    assert (tmp_path / "best.keras").exists() and (tmp_path / "serving/digits/1/saved_model.pb").exists()


def test_every_method_is_in_the_table():
    for method in METHODS.values():
        assert f"`{method.__name__}`" in README


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert len(targets) > 3
    assert not [target for target in targets if not (ROOT / target).exists()]
