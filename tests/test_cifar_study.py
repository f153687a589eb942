"""Tests experiments/cifar.py: the recipes, weights in float16, merging results of other machines."""

import json

import keras
import numpy as np
import pytest

import keras_mart as km
from experiments import cifar, merge, weights


def test_the_recipes_are_those_of_the_configs_and_are_shortened_in_proportion():
    whole = {run.name: run.flags for run in cifar.runs("npz:x")}
    assert whole.keys() == {"mart-0", "trades-0", "at-0", "standard-0", "onecycle-0"}
    mart = {"method": "mart", "epochs": 120, "decay_epochs": "75,90,100", "weight_decay": "3.5e-3", "epsilon": "0.031"}
    assert mart.items() <= whole["mart-0"].items() and whole["mart-0"]["evaluation_epsilon"] == "8/255"
    assert {name for name in whole["at-0"] if whole["at-0"][name] != whole["mart-0"][name]} == {"method"}
    assert {"method": "at", "epochs": 30, "warmup_epochs": "12"}.items() <= whole["onecycle-0"].items()
    short = {run.name: run.flags for run in cifar.runs("npz:x", epochs=12)}
    assert short["mart-0"]["epochs"] == 12 and short["mart-0"]["decay_epochs"] == "8,9,10"
    assert all(run.flags["precision"] == "float32" for run in cifar.runs("npz:x", 3, [("precision", "float32")]))
    assert short["onecycle-0"]["epochs"] == 3 and short["onecycle-0"]["warmup_epochs"] == "1.2"


def network(classes=10):
    return km.zoo.wide_resnet(10, 1, num_classes=classes)


def test_weights_are_rounded_and_read_from_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LIMIT", 80_000)
    kept, written, read = tmp_path / "study" / "mart-0", network(), network()
    weights.write(written, kept, "best")
    paths = weights.paths(kept, "best")
    assert [path.name for path in paths] == [f"mart-0-best-{n}-of-{len(paths)}.npz" for n in range(1, len(paths) + 1)]
    assert len(paths) > 1 and sum(path.stat().st_size for path in paths) > 2 * written.count_params()
    weights.read(read, kept, "best")
    for one, other in zip(written.get_weights(), read.get_weights(), strict=True):
        np.testing.assert_array_equal(one.astype("float16"), other)
    monkeypatch.setattr(weights, "LIMIT", 10**6)
    weights.write(written, kept, "best")  # in fewer files; the others are removed
    assert [path.name for path in kept.parent.iterdir()] == ["mart-0-best-1-of-1.npz"]


def test_weights_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    kept, large = tmp_path / "mart-0", network()
    weights.write(large, kept, "best")
    with pytest.raises(
        ValueError, match=r"same network\. Received: .*mart-0-best, which differs at \['[^']+', '[^']+'\]"
    ):
        weights.read(network(classes=9), kept, "best")
    monkeypatch.setattr(weights, "LIMIT", 80_000)
    weights.write(large, kept, "best")
    weights.paths(kept, "best")[1].unlink()
    for which in ("best", "last"):
        with pytest.raises(ValueError, match=rf"must exist\. Received: .*mart-0-{which}-"):
            weights.read(large, kept, which)
    monkeypatch.setattr(weights, "LIMIT", 1000)
    with pytest.raises(ValueError, match="a file of 1,000 bytes"):
        weights.write(large, kept, "best")
    monkeypatch.undo()
    large.weights[-1].assign(1e5 + keras.ops.zeros_like(large.weights[-1]))
    with pytest.raises(ValueError, match=f"must fit into float16.* Received: {large.weights[-1].path}"):
        weights.write(large, kept, "best")


def record(history=(1, 2), **evaluations):
    return {
        "flags": {"epochs": 2}, "seed": 0, "jobs": 1, "machine": {"cpu": "one"}, "history": list(history),
        "seconds": dict.fromkeys(evaluations, 5), "evaluations": evaluations,
    }  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """A function that writes our and their results, and returns the merged ones."""

    def merged(ours, theirs):
        for name, found in {"ours": ours, "theirs": theirs}.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "cifar.json").write_text(json.dumps(found))
        (tmp_path / "theirs" / "wide_resnet.json").write_text(json.dumps({"flags": {"depth": 10}, "loss": 1.0}))
        merge.merge(tmp_path / "theirs", tmp_path / "ours")
        assert not (tmp_path / "ours" / "wide_resnet.json").exists()
        return json.loads((tmp_path / "ours" / "cifar.json").read_text())

    return merged


def test_merging_adds_runs_and_completes_records(folders):
    ours, theirs = record(weak=1) | {"jobs": 2}, record(weak=1, strong=2) | {"machine": {"cpu": "two"}}
    both = record(weak=1, strong=2) | {"jobs": 2}
    assert folders({"one": ours}, {"one": theirs, "two": theirs}) == {"one": both, "two": theirs}
    assert folders({"one": theirs}, {"one": ours}) == {"one": theirs}
    untrained = record(history=(), strong=2)
    assert folders({"one": untrained}, {"one": ours})["one"]["history"] == [1, 2]


def test_merging_refuses_contradictory_runs_and_writes_nothing(folders, tmp_path):
    good = record(weak=1)
    others = {
        "flags": good | {"flags": {"epochs": 3}}, "history": record(history=(1, 3)), "evaluations": record(weak=2),
    }  # fmt: skip
    for key, other in others.items():
        with pytest.raises(SystemExit, match=rf"same training\. Received: .*cifar\.json: one \({key}\)"):
            folders({"one": good}, {"new": good, "one": other})
        assert json.loads((tmp_path / "ours" / "cifar.json").read_text()) == {"one": good}
