"""experiments/: the frame that runs a study, the figures' own methods, smaller training sets, and the report."""

import json
import os
import pathlib
import signal
import sys
import threading
import time
import types

import keras
import numpy as np
import pytest
import test_losses as formulas
from conftest import images_and_labels, linear_network

import keras_mart as km
from experiments import cells, data, figure1, options, paper, report, study, whitebox, work
from experiments.methods import ALTERATIONS, TREATMENTS, Altered, Partial, Split
from keras_mart.methods.base import Outputs

ROOT = pathlib.Path(__file__).parents[1]

# --- the frame ---

# Stands in the place of Python: it leaves what the command line would leave. BEHAVIOUR says where it does otherwise.
STUB = """#!{python} -IS
import json, os, pathlib, signal, sys, time

flags = dict(each[2:].split("=", 1) for each in sys.argv[3:])
directory = pathlib.Path(flags["workdir"])
directory.mkdir(parents=True, exist_ok=True)
call = " ".join([*directory.parts[-2:], flags.get("attacks", flags["mode"])])
with (directory.parents[1] / "calls").open("a") as file:
    print(call, file=file)
results = pathlib.Path(os.environ["RESULTS"])
(directory / "seen").write_text(results.read_text() if results.exists() else "{{}}")
behaviour = json.loads(os.environ.get("BEHAVIOUR", "{{}}")).get(call)
if behaviour == "hang":
    def save(*_):
        (directory / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (directory / "hangs").touch()
    time.sleep(60)
if behaviour == "fail":
    sys.exit(3)
if flags["mode"] == "train":
    (directory / "last.keras").touch()
    (directory / "history.csv").write_text("epoch,loss,val_pgd20_accuracy\\n1,0.123456789,\\n2,0.5,0.25\\n")
else:
    (directory / "evaluation.json").write_text(json.dumps({{"best": flags["attacks"]}}))
"""
FGSM, CW = {"attacks": "fgsm"}, {"attacks": "cw"}


@pytest.fixture
def frame(tmp_path, monkeypatch):
    """Makes studies over one folder, whose commands the stub answers."""
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.setattr(study, "POLL", 0.02)
    monkeypatch.setattr(work, "_packed", lambda path: {})
    monkeypatch.setenv("RESULTS", str(tmp_path / "results" / "study.json"))
    folders = {"root": tmp_path / "runs", "results": tmp_path / "results", "jobs": 1}
    return lambda name="study", **options: study.Study(name, **{**folders, **options})


def run(name="one", evaluations=None, **flags):
    return study.Run(name, {"epochs": 2, **flags}, {"weak": FGSM} if evaluations is None else evaluations)


def calls(made):
    """What was done since the last look: "<study>/<run> train", or the attacks."""
    path = made.root / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.replace(" ", "/", 1) for line in lines]


def kept(made):
    return json.loads(made.path.read_text())


def test_only_what_is_left_is_done(frame):
    frame().do([run()])
    assert calls(frame()) == ["study/one train", "study/one fgsm"]
    frame().do([run()])
    assert calls(frame()) == []
    frame().do([run(evaluations={"weak": FGSM, "strong": CW})])
    assert calls(frame()) == ["study/one cw"]
    frame().do([run(evaluations={"weak": CW, "strong": CW})])
    assert calls(frame()) == ["study/one cw"]
    record = kept(frame())["one"]
    assert record["evaluations"] == {
        name: {"flags": CW, "best": "cw", "outcomes": {"best": {}, "last": {}}} for name in ("weak", "strong")
    }
    assert record["history"] == [
        {"epoch": 1.0, "loss": 0.123457, "val_pgd20_accuracy": None},
        {"epoch": 2.0, "loss": 0.5, "val_pgd20_accuracy": 0.25},
    ]


def test_results_of_other_flags_are_not_overwritten(frame):
    frame().do([run()])
    before = kept(frame())
    with pytest.raises(SystemExit, match=r"other flags: one\. Give another --root"):
        frame().do([run(epochs=3)])
    assert kept(frame()) == before


def test_runs_of_another_study_are_evaluated_where_they_were_trained(frame):
    other = study.Run("one", {"epochs": 2, "seed": 7}, {"weak": FGSM}, trained="other")
    with pytest.raises(SystemExit, match=r"experiments\.other` that are missing or have other flags: one"):
        frame().do([other])
    trainer = frame(name="other")
    trainer.do([study.Run("one", other.flags)])
    frame().do([other])
    frame().do([other])
    assert calls(frame()) == ["other/one train", "other/one fgsm"]
    trainer.directory(other).last.unlink()
    frame().do([other])  # as in a fresh clone, which has the results alone
    assert kept(frame())["one"]["seed"] == 7 and kept(frame())["one"]["history"] == []


def test_a_run_that_others_need_is_trained_again_where_it_is_gone(frame):
    one = run(evaluations={})
    frame().do([one])
    frame().need([one])
    assert calls(frame()) == ["study/one train"]
    frame().directory(one).last.unlink()
    frame().do([one])
    frame(only="others").need([one])
    assert calls(frame()) == ["study/one train"]


def test_one_experiment_at_a_time_works_in_a_folder(tmp_path):
    lock = options._locked(tmp_path)
    with pytest.raises(SystemExit, match="Another experiment is at work"):
        options._locked(tmp_path)
    lock.close()
    options._locked(tmp_path).close()


def test_only_takes_the_runs_whose_name_holds_it(frame):
    frame(only="tw").do([run("one"), run("two")])
    assert list(kept(frame())) == ["two"]


def test_a_failed_run_is_named_and_goes_on_the_next_time(frame, monkeypatch, capsys):
    runs = [run("one"), run("two"), run("three")]
    monkeypatch.setenv("BEHAVIOUR", json.dumps({"study one train": "fail", "study two fgsm": "fail"}))
    with pytest.raises(SystemExit, match=r"study: failed: one, two; .*<run>\.log says why"):
        frame().do(runs)
    assert list(kept(frame())) == ["two", "three"]
    assert kept(frame())["two"]["evaluations"] == {} and kept(frame())["three"]["evaluations"]
    calls(frame())
    monkeypatch.delenv("BEHAVIOUR")
    frame().do(runs)
    assert "study: 2 of 3 runs are left" in capsys.readouterr().out
    assert calls(frame()) == ["study/one train", "study/one fgsm", "study/two fgsm"]


def test_results_are_written_after_each_stage(frame):
    frame().do([run(evaluations={"weak": FGSM, "strong": CW})])
    seen = json.loads((frame().root / "study" / "one" / "seen").read_text())["one"]  # by the last stage
    assert len(seen["history"]) == 2 and list(seen["evaluations"]) == ["weak"]


def test_results_are_written_whole_or_not_at_all(frame, monkeypatch):
    frame().record(run(), history=[{"epoch": 1}])
    before = kept(frame())

    def half(path, text):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("no room")

    monkeypatch.setattr(pathlib.Path, "write_text", half)
    with pytest.raises(OSError, match="no room"):
        frame().record(run(), history=[{"epoch": 2}])
    assert kept(frame()) == before


def test_seconds_are_those_of_all_attempts(frame, monkeypatch):
    monkeypatch.setenv("BEHAVIOUR", json.dumps({"study one train": "fail"}))
    spent = frame().root / "study" / "one.train.seconds"
    for found in (0, 1000):
        with pytest.raises(SystemExit):
            frame().do([run()])
        assert float(spent.read_text()) >= found
        spent.write_text("1000.0\n")
    monkeypatch.delenv("BEHAVIOUR")
    frame().do([run()])
    assert kept(frame())["one"]["seconds"].keys() == {"train", "weak"}
    assert 1000 <= kept(frame())["one"]["seconds"]["train"] < 1060
    (spent.parent / "one.weak.seconds").write_text("1000.0\n")
    for least, flags in ((1000, CW), (0, FGSM)):  # what is done again counts from 0
        frame().do([run(evaluations={"weak": flags})])
        assert least <= kept(frame())["one"]["seconds"]["weak"] < least + 60


def test_sigterm_has_the_runs_save_and_end(frame, monkeypatch):
    made = frame()
    names = ("one", "two", "three")
    monkeypatch.setenv("BEHAVIOUR", json.dumps({f"study {name} train": "hang" for name in names}))
    monkeypatch.setattr(sys, "argv", ["study", f"--root={made.root}", f"--results={made.path.parent}", "--jobs=2"])
    handler = signal.signal(signal.SIGTERM, _unheard)
    try:
        begun, _ = options.begin("study", "", train_examples=0, epochs=1)
        killer = threading.Thread(target=_kill_when_all_hang, args=[made.root / "study", names[:2]])
        killer.start()
        with pytest.raises(SystemExit) as end:
            begun.do(list(map(run, names)))
        killer.join()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert end.value.code == 143
    assert sorted(path.parent.name for path in made.root.rglob("saved")) == ["one", "two"]
    assert sorted(calls(made)) == ["study/one train", "study/two train"]  # and the third was not begun


def _unheard(*_):
    raise AssertionError("`begin` does not listen to SIGTERM")


def _kill_when_all_hang(folder, names):
    end = time.monotonic() + 20
    while not all((folder / name / "hangs").exists() for name in names) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(study, "POLL", 0.1)
    data.write(tmp_path / "chosen.npz", chosen=np.arange(5))
    flags = {
        "dataset": data.first("digits", 40, tmp_path), "network": "small_cnn", "epochs": 1, "steps": 1, "epsilon": 0.1,
        "method": "split", "treatment": "fgsm", "chosen": tmp_path / "chosen.npz",
    }  # fmt: skip
    made = study.Study("study", tmp_path / "runs", tmp_path / "results", jobs=1)
    flags = {name: str(value) for name, value in flags.items()}
    made.do([study.Run("split-0", flags, {"weak": {"attacks": "fgsm", "examples": 7}})])
    record = kept(made)["split-0"]
    assert record["flags"] == flags and record["seconds"].keys() == {"train", "weak"}
    (row,) = record["history"]
    assert row["epoch"] == 1 and np.isfinite(row["loss"]) and 0 <= row["val_pgd20_accuracy"] <= 1
    judged = record["evaluations"]["weak"]
    assert judged["flags"] == {"attacks": "fgsm", "examples": 7} and judged["threat"]["epsilon"] == 0.1
    assert judged["best"]["examples"] == 7 and judged["last"]["accuracy"].keys() >= {"natural", "fgsm"}
    assert cells.values({0: record}, "fgsm", "best")[0].accuracy == judged["best"]["accuracy"]["fgsm"]


# --- the figures' own methods ---

EXAMPLES, SHAPE, CLASSES, EPSILON, BETA = 8, (2, 2, 1), 3, 0.1, 1.5
ATTACK = km.PGD(km.Linf(EPSILON), steps=2, step_size=0.05)
X, Y = images_and_labels(EXAMPLES, SHAPE, low=0.3, high=0.7)  # no ball reaches 0 or 1
NUM_EXAMPLES = 12
INDEX = np.array([11, 3, 0, 7, 5, 2, 9, 4])
CHOSEN = [0, 4, 5, 10, 11]
IS_CHOSEN = np.array([True, False, True, False, True, False, False, True])  # those of INDEX
SEED = keras.ops.convert_to_tensor([0, 1])
WEIGHTS = np.random.default_rng(1).normal(size=(4, CLASSES)).astype("float32")


def logits(seed):
    return (np.random.default_rng(seed).normal(size=(EXAMPLES, CLASSES))).astype("float32")


NATURAL, ADVERSARIAL = logits(2), logits(3)
OUTPUTS = Outputs(NATURAL, ADVERSARIAL, EPSILON, INDEX)
KL = formulas.kl_divergence(NATURAL, ADVERSARIAL)
WEIGHT = formulas.misclassification_weight(Y, NATURAL)
BCE = formulas.boosted_cross_entropy(Y, ADVERSARIAL)
EXPECTED = {
    "no_weight": BCE + BETA * KL,
    "no_kl": BCE + BETA * WEIGHT,
    "no_weight_no_kl": BCE,
    "ce": formulas.cross_entropy(Y, ADVERSARIAL) + BETA * KL * WEIGHT,
    "natural_bce": formulas.boosted_cross_entropy(Y, NATURAL) + BETA * KL * WEIGHT,
    "kl_attack": BCE + BETA * KL * WEIGHT,
}


def network():
    return linear_network(WEIGHTS, np.zeros(CLASSES), shape=SHAPE)


def build(method, **arguments):
    return method(network(), ATTACK, seed=0, **{"beta": BETA, **arguments})


@pytest.fixture
def split(tmp_path):
    data.write(tmp_path / "chosen.npz", chosen=np.array(CHOSEN))
    path = str(tmp_path / "chosen.npz")
    return lambda treatment: build(Split, treatment=treatment, chosen=path, num_examples=NUM_EXAMPLES)


def test_every_alteration_has_a_formula():
    assert EXPECTED.keys() == set(ALTERATIONS)


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_altered_loss_and_objective(alteration):
    model = build(Altered, alteration=alteration)
    np.testing.assert_allclose(model.training_loss(Y, OUTPUTS), EXPECTED[alteration], rtol=1e-5)
    natural, moved = (images.reshape(EXAMPLES, -1) @ WEIGHTS for images in (X, X + EPSILON))
    climbed = formulas.cross_entropy(Y, moved)
    if alteration == "kl_attack":
        climbed = formulas.kl_divergence(natural, moved)
    found = model.attack_objective(X, Y)(keras.ops.convert_to_tensor(X + EPSILON))
    np.testing.assert_allclose(found, climbed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_split_attacks_the_others_as_ever_and_the_chosen_otherwise(treatment, split):
    x = keras.ops.convert_to_tensor(X)
    found, epsilon = split(treatment).perturb(x, Y, SEED, INDEX)
    usual, _ = km.AT(network(), ATTACK, seed=0).perturb(x, Y, SEED)
    np.testing.assert_array_equal(found[~IS_CHOSEN], usual[~IS_CHOSEN])
    assert epsilon == EPSILON
    expected = {"natural": X, "fgsm": _one_step(), "regularised": np.asarray(usual)}[treatment]
    np.testing.assert_allclose(found[IS_CHOSEN], expected[IS_CHOSEN], atol=1e-6)
    assert not np.allclose(_one_step(), usual, atol=1e-3)


def _one_step():
    """X + epsilon * sign of the cross-entropy's gradient, of a linear network."""
    gradient = (formulas.softmax(X.reshape(EXAMPLES, -1) @ WEIGHTS) - np.eye(CLASSES)[Y]) @ WEIGHTS.T
    return X + EPSILON * np.sign(gradient).reshape(X.shape)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_split_regularises_the_chosen_alone(treatment, split):
    model = split(treatment)
    added = BETA * IS_CHOSEN * KL * (treatment == "regularised")
    expected = formulas.cross_entropy(Y, ADVERSARIAL) + added
    np.testing.assert_allclose(model.training_loss(Y, OUTPUTS), expected, rtol=1e-5)
    in_validation = model.training_loss(Y, OUTPUTS._replace(index=None))
    np.testing.assert_allclose(in_validation, formulas.cross_entropy(Y, ADVERSARIAL), rtol=1e-5)
    assert model.trains_on_natural == (treatment == "regularised")


def test_partial_lies_between_the_first_term_and_mart():
    everyone = OUTPUTS._replace(index=np.arange(EXAMPLES))
    whole = formulas.mart(Y, NATURAL, ADVERSARIAL, BETA)
    counted = []
    for share in (0, 0.25, 0.5, 1):
        model = build(Partial, share=share, num_examples=EXAMPLES)
        found = np.asarray(model.training_loss(Y, everyone))
        has_second = np.isclose(found, whole, rtol=1e-5)
        np.testing.assert_allclose(found, np.where(has_second, whole, BCE), rtol=1e-5)
        counted.append(has_second)
    assert [each.sum() for each in counted] == [0, 2, 4, 8]
    assert (counted[1] <= counted[2]).all()  # a larger share holds a smaller one
    last = build(Partial, share=0.5, num_examples=EXAMPLES)
    np.testing.assert_allclose(last.training_loss(Y, OUTPUTS._replace(index=None)), whole, rtol=1e-5)
    turned = np.asarray(last.training_loss(Y, OUTPUTS._replace(index=np.arange(EXAMPLES)[::-1].copy())))
    np.testing.assert_array_equal(np.isclose(turned, whole, rtol=1e-5), counted[2][::-1])


@pytest.mark.parametrize("name", ["split", "altered", "partial"])
def test_own_methods_are_saved_with_what_makes_them(name, split, tmp_path):
    model = {
        "split": lambda: split("fgsm"),
        "altered": lambda: build(Altered, alteration="no_kl"),
        "partial": lambda: build(Partial, share=0.25, num_examples=NUM_EXAMPLES),
    }[name]()
    model.compile("sgd")
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert type(loaded) is type(model)
    configs = [{key: value for key, value in each.get_config().items() if key != "network"} for each in (model, loaded)]
    assert configs[0] == configs[1] and configs[0]["beta"] == BETA
    np.testing.assert_array_equal(loaded.training_loss(Y, OUTPUTS), model.training_loss(Y, OUTPUTS))


# --- smaller training sets ---


@pytest.fixture
def numbered(tmp_path):
    """A dataset whose images are all of one grey, their number, and whose labels tell it modulo 3."""
    counts = {"train": 40, "test": 12}
    arrays = {f"x_{split}": np.ones([count, 2, 2], "uint8") for split, count in counts.items()}
    arrays = {name: each * np.arange(len(each), dtype="uint8")[:, None, None] for name, each in arrays.items()}
    np.savez(tmp_path / "numbers.npz", **arrays, **{f"y_{split}": np.arange(n) % 3 for split, n in counts.items()})
    return f"npz:{tmp_path / 'numbers.npz'}"


def numbers(images):
    return np.asarray(images)[:, 0, 0].ravel().tolist()


def test_whole_gives_all_training_images_those_that_validate_last(numbered):
    (images, labels), (test_images, _) = data.whole(numbered)
    assert sorted(numbers(images)) == list(range(40)) and numbers(test_images) == list(range(12))
    assert numbers(images[:36]) == sorted(numbers(images[:36]))
    validation = km.datasets.load(numbered, "validation", batch_size=4)
    assert numbers(images[36:]) == [round(255 * each) for each in numbers(next(iter(validation))[0])]
    assert (labels == np.array(numbers(images)) % 3).all()


def test_first_are_the_first_in_their_order_with_the_test_set_whole(numbered, tmp_path):
    name = data.first(numbered, 10, tmp_path)
    assert name.startswith(f"npz:{tmp_path / 'data' / 'numbers-10-'}")
    everything = numbers(data.whole(numbered)[0][0])
    with np.load(name.removeprefix("npz:")) as file:
        assert numbers(file["x_train"]) == everything[:10] and numbers(file["x_test"]) == list(range(12))
        assert file["y_train"].tolist() == [each % 3 for each in everything[:10]]
    assert km.datasets.describe(name).num_examples == {"train": 9, "validation": 1, "test": 12}
    assert data.first(numbered, 0, tmp_path) == numbered
    assert data.first(numbered, 10, tmp_path) == name != data.first(numbered, 10, tmp_path, classes=2)
    with pytest.raises(ValueError, match=r"--train_examples must be at most 40\. Received: 41"):
        data.first(numbered, 41, tmp_path)


def test_first_may_take_the_first_classes_alone(numbered, tmp_path):
    with np.load(data.first(numbered, 10, tmp_path, classes=2).removeprefix("npz:")) as file:
        assert numbers(file["x_train"]) == [each for each in numbers(data.whole(numbered)[0][0]) if each % 3 < 2][:10]
        assert numbers(file["x_test"]) == [0, 1, 3, 4, 6, 7, 9, 10] and set(file["y_test"]) == {0, 1}


def test_the_sets_of_figure_1_are_the_misclassified_and_as_many_others(numbered, tmp_path):
    always_0 = linear_network(np.zeros([4, 3]), np.array([1.0, 0.0, 0.0]), shape=SHAPE)
    directory = study.Study("figure1", tmp_path, tmp_path, jobs=1).directory(run("at-0"))
    directory.path.mkdir(parents=True)
    model = km.AT(always_0, ATTACK)
    model.compile("sgd")
    model.save(directory.last)
    found = figure1.split(directory, numbered)
    batch = next(iter(km.datasets.load(numbered, "train", batch_size=36, with_index=True)))
    (_, index), labels = keras.tree.map_structure(np.asarray, batch)
    labels = labels[np.argsort(index)]  # by the examples' numbers
    wrong, correct = (np.load(directory.path / f"{name}.npz")["chosen"] for name in ("misclassified", "correct"))
    assert correct.tolist() == np.flatnonzero(labels == 0).tolist()
    assert len(set(wrong)) == len(wrong) == len(correct) and (labels[wrong] > 0).all()
    counts = {"misclassified": np.bincount(labels[wrong]).tolist(), "correct": [len(correct)]}
    assert found == {"training examples": 36, "misclassified": 36 - len(correct), "of each class": counts}


# --- the report ---


def record(seed=0, history=(), lost=0.0, flags=None, **evaluations):
    """What a study keeps of a run.

    An evaluation is (examples, accuracies); the last checkpoint is by `lost` worse than the best. `flags`: evaluation
    to its flags.
    """
    judged = {}
    for name, (examples, accuracy) in evaluations.items():
        best, last = (
            {attack: packed(value - less, examples) for attack, value in accuracy.items()} for less in (0.0, lost)
        )
        both = {"best": {"examples": examples}, "last": {"examples": examples}}
        judged[name] = {"flags": (flags or {}).get(name, {}), **both, "outcomes": {"best": best, "last": last}}
    return {
        "flags": {"dataset": "npz:somewhere/mnist-12000.npz", "epochs": 2, "seed": seed}, "seed": seed, "jobs": 2,
        "machine": {"cpu": "a CPU", "cores": 2}, "seconds": {"train": 3600, **dict.fromkeys(evaluations, 90)},
        "history": [{"epoch": 1.0 + n, "val_pgd20_accuracy": value} for n, value in enumerate(history)],
        "evaluations": judged,
    }  # fmt: skip


def right(accuracy, examples):
    """[examples] booleans, the first so many of which are true."""
    return np.arange(examples) < round(accuracy * examples)


def packed(accuracy, examples):
    return np.packbits(right(accuracy, examples)).tobytes().hex()


def white_box(seed, pgd20, autoattack=None, lost=0.0):
    judged = {"paper": (100, {"natural": 0.9, "fgsm": 0.8, "pgd20": pgd20, "cw": 0.6})}
    if autoattack is not None:
        judged["autoattack"] = (50, {"natural": 1.0, "pgd20": autoattack + 0.2, "autoattack": autoattack})
    return record(seed, (0.1, None, pgd20), lost, whitebox.EVALUATIONS, **judged)


WHITE_BOX = {
    "trades-0": white_box(0, 0.5),
    "mart-0": white_box(0, 0.6, 0.4),
    "mart-1": white_box(1, 0.7, 0.5),
}
STUDIES = {
    "whitebox": WHITE_BOX,
    "figure1": {
        f"natural-{chosen}-{seed}": record(seed, (0.2,), pgd20=(100, {"natural": 0.5, "pgd20": accuracy}))
        for chosen, accuracies in {"misclassified": (0.3, 0.2), "correct": (0.35, 0.4)}.items()
        for seed, accuracy in enumerate(accuracies)
    },
    "wide_resnet": {"flags": {}, "machine": {"cpu": "a CPU"}, "seconds of each step": [1.5, 2.0], "parameters": 46160},
}


def section(text, title):
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def of(*accuracies, examples=100):
    """Seed to `Value`."""
    return {seed: cells.Value(right(each, examples)) for seed, each in enumerate(accuracies)}


def test_a_cell_is_a_mean_with_its_range_or_one_run_with_its_interval():
    assert cells.cell(of(0.5)) == "50.00 [40.4, 59.6]"  # Wilson's textbook interval of 50 in 100
    assert cells.cell(of(0.5, 0.6, 0.76)) == "62.00 (50.00 to 76.00)"
    assert cells.cell({}) == "-"


def test_differences_are_of_runs_with_the_same_seed():
    ours, theirs = of(0.6, 0.75), of(0.5, 0.45, 0.9)
    assert cells.difference(ours, theirs) == "+20.00 (+10.00 to +30.00)"
    assert cells.difference({5: ours[0]}, theirs) == "-"
    assert cells.difference({0: ours[0]}, theirs).startswith("+10.00 [")


def test_intervals_of_differences_compare_image_by_image():
    def told(mean, squares):  # with two images more, whose differences cancel and whose squares add up to 1
        centre = 100 * mean / 102
        half = 1.96 * ((squares + 1) / 102 - (mean / 102) ** 2) ** 0.5 / 102**0.5
        return f"[{centre - 100 * half:+.1f}, {centre + 100 * half:+.1f}]"

    # 10 of 100 images are gained.
    assert cells.difference(of(0.6), of(0.5)) == f"+10.00 {told(10, 10)}"
    # Over two seeds, images 50 to 59 gain 1 and 60 to 69 gain 1/2.
    both = cells.difference(of(0.6, 0.7), of(0.5, 0.5), interval=True)
    assert both == f"+15.00 (+10.00 to +20.00) {told(15, 12.5)}"
    assert cells.difference(of(0.5), of(0.5)) == f"+0.00 {told(0, 0)}"


def test_differences_are_of_the_same_images():
    assert cells.difference(of(0.6), of(0.5, examples=50)) == "-"


def test_the_white_box_table_by_hand():
    text = section(report.page(STUDIES), "The white-box table")
    lines = text.splitlines()
    # 65 is the mean of 60 and 70, 45 of 40 and 50. AutoAttack's 100% natural is of fewer images, and not taken.
    everywhere = "90.00 (90.00 to 90.00) | 80.00 (80.00 to 80.00) | 65.00 (60.00 to 70.00) | 60.00 (60.00 to 60.00)"
    assert f"| MART | {everywhere} | 45.00 (40.00 to 50.00) |" in lines
    assert sum(line.startswith("| TRADES | 90.00 [82.6, 94.5] |") and line.endswith(" | - |") for line in lines) == 1
    assert "| test images | 100 | 100 | 100 | 100 | 50 |" in lines
    assert not [line for line in lines if line.startswith(("| Standard |", "| MMA | 9"))][1:]
    assert "| MART | 98.74 (-8.74) | 97.87 (-17.87) | 96.48 (-31.48) | 96.10 (-36.10) | recalled |" in lines
    assert "| AT | 99.11 | 97.17 | 94.62 | 94.25 | recalled |" in lines
    assert "PGD-20 minus AutoAttack, best checkpoint: MART +20.00 (+20.00 to +20.00) [" in text
    assert not [line for line in lines if line.startswith("| MART minus TRADES | +1")]  # which has not met AutoAttack
    both = report.page({"whitebox": {**WHITE_BOX, "trades-0": white_box(0, 0.5, 0.3)}})
    (lead,) = [line for line in both.splitlines() if line.startswith("| MART minus TRADES | +10.00 [")]
    assert lead.endswith(" | 1 |")
    assert "| MART minus TRADES | +5.32 | -1.96 to -0.56 | paper, recalled, public reruns |" in lines
    assert "Runs: 2 of 13 are whole." in text.replace("\n", " ")
    assert "train 3.0 h, paper 4 min, autoattack 3 min; together 3.1 h, 2 at a time" in text.replace("\n", " ")
    assert "dataset mnist-12000, epochs 2" in text and "images/whitebox.png" in text


def test_the_last_checkpoint_is_told_where_it_is_not_the_best():
    results = {**WHITE_BOX, "mart-1": white_box(1, 0.7, 0.5, lost=0.1)}
    text = section(report.page({"whitebox": results}), "The white-box table")
    of_last = text.partition("MNIST, last checkpoint, where it is not the best:")[2].partition("\n\nThe last")[0]
    # 85 is the mean of 90 and 80, 60 of 60 and 60.
    assert "| MART | 85.00 (80.00 to 90.00) | 75.00 (70.00 to 80.00) | 60.00 (60.00 to 60.00) |" in of_last
    assert "TRADES" not in of_last
    text = text.replace("\n", " ")
    assert "The last checkpoint is the best in 2 of 3 runs." in text
    assert "last but one validation to the last: TRADES +40.00, MART +55.00." in text
    assert "where it is not the best" not in report.page(STUDIES)


def test_a_run_that_was_judged_otherwise_is_not_whole():
    other = white_box(0, 0.6, 0.4)
    other["evaluations"]["autoattack"]["flags"] = {"attacks": "pgd20,autoattack", "examples": 50}
    text = report.page({"whitebox": {**WHITE_BOX, "mart-0": other}})
    assert "Runs: 1 of 13 are whole." in text.replace("\n", " ")


def test_pgd20_minus_autoattack_is_of_the_same_images():
    judged = record(paper=(100, {"pgd20": 0.9}), autoattack=(50, {"pgd20": 0.8, "autoattack": 0.7}))
    text = report.page({"whitebox": {"mart-0": judged}})
    assert "PGD-20 minus AutoAttack, best checkpoint: MART +10.00 [" in text.replace("\n", " ")
    assert "| MART | - | - | 90.00 [" in text  # of more images


def test_figure_1_pairs_the_seeds():
    lines = section(report.page(STUDIES), "Figure 1").splitlines()
    assert "| S- unperturbed | 50.00 (50.00 to 50.00) | 25.00 (20.00 to 30.00) | - |" in lines
    (pair,) = [line for line in lines if line.startswith("| unperturbed | -5.00, -20.00 | ")]
    assert pair.split(" | ")[2].startswith("-12.50 (-20.00 to -5.00) [") and pair.endswith("] | - | - |")


def test_figure_1_tells_the_split_and_holds_c_against_its_control():
    classes = {"misclassified": [20, 10], "correct": [5, 25]}
    split = {"training examples": 90, "misclassified": 30, "of each class": classes}
    results = {**STUDIES["figure1"], "at-0": record(history=(0.2,)) | {"split": split}}
    results["forwarded-0"] = record(history=(0.2,), pgd20=(100, {"natural": 0.5, "pgd20": 0.45}))
    text = section(report.page({"figure1": results}), "Figure 1").replace("\n", " ")
    assert "misclassifies 30 of 90 training images (33.3%). By classes, S- has 30 (20, 10); S+ has 30 (5, 25)." in text
    assert "| AT, natural images too | 50.00 [40.4, 59.6] | 45.00 [35.6, 54.8] | - |" in text


def test_figure_2_takes_mart_itself_for_share_1_and_its_own_beta():
    def judged(accuracy):
        return record(history=(0.2,), pgd20=(100, {"natural": 0.5, "pgd20": accuracy}))

    results = {
        "mart-0": judged(0.4),
        "share-0.25-0": judged(0.3),
        "no_kl-0": judged(0.35),
        "no_weight_no_kl-0": judged(0.2),
    }
    results |= {"mart-beta-2-0": judged(0.38), "trades-beta-2-0": judged(0.28)}
    lines = section(report.page({"figure2": results}), "Figure 2").splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[2][:5] for line in lines if line.startswith("| ")}
    expected = {"0": "20.00", "0.25": "30.00", "1": "40.00", "MART 5": "40.00", "MART 2": "38.00", "TRADES 2": "28.00"}
    assert {name: rows[name] for name in expected} == expected
    (without,) = [line for line in lines if line.startswith("| without KL |")]
    assert "| -5.00 [" in without
    assert rows["2"].startswith("+10.0")


def test_black_box_stands_beside_the_same_networks_white_box():
    attacks = {"natural": 0.95} | {f"transfer-{attack}": 0.85 for attack in ("fgsm", "pgd10", "pgd20", "cw")}
    results = {"mart-0": record(standard=(100, attacks))} | {"standard-100": record(history=(0.2,))}
    text = section(report.page({"whitebox": WHITE_BOX, "blackbox": results}), "The black-box table")
    cells = " | ".join(["95.00 [88.8, 97.8]", *["85.00 [76.7, 90.7]"] * 4])
    assert f"| MART | {cells} | 65.00 (60.00 to 70.00) |" in text.splitlines()
    assert "Made on the network of Standard" in text and "Made on the network of AT" not in text


def test_what_is_missing_is_said_with_its_command():
    text = report.page({})
    for each in report.SECTIONS:
        part = text.partition(f"there is no `experiments/results/{each.name}.json`")[2].partition("\n## ")[0]
        assert f"python -m experiments.{each.name} " in part
    assert "images/" not in text and "Runs:" not in text
    begun = report.page({each.name: {"mart-0": record()} for each in report.SECTIONS if each.runs})
    assert begun.count("Runs: 0 of ") == sum(bool(each.runs) for each in report.SECTIONS) and "images/" not in begun


def test_a_docstring_and_what_was_found_make_a_section(monkeypatch):
    module = types.ModuleType("experiments.whitebox")
    module.__doc__ = (
        "A table: all of it.\n\nPaper: one\nclaim. Ours: less.\n\nAnd more.\n\n    a command\n\nResult: r.\n"
    )
    module.FOUND = "\nMuch the same.\n"
    monkeypatch.setattr(report, "SECTIONS", [report.SECTIONS[0]._replace(module=module)])
    text = section(report.page(STUDIES), "A table")
    assert text.startswith("\nAll of it.\n\n**Paper:** one claim.\n\n**Ours:** less.\n\nAnd more.\n\n![")
    assert "\n\n**What came out:** Much the same.\n\n" in text and text.endswith("```\na command\n```\n")


def test_how_certain_each_cited_figure_is():
    cited = [*paper.MNIST.values(), *paper.CIFAR10.values(), *paper.AUTOATTACK.values(), paper.BLACK_BOX]
    cited += [paper.UNLABELLED, paper.UNLABELLED_AUTOATTACK]
    assert {each.certainty for each in cited} == paper.CERTAINTY.keys()
    text = section(report.page({"unlabelled": {"all": record()}}), "Unlabelled data").replace("\n", " ")
    assert "natural 87.50 (paper), PGD-20 65.04 (paper), AutoAttack 56.29 (RobustBench)." in text


def test_the_page_is_what_the_results_give():
    given = report.page(report.read(ROOT / "experiments" / "results"))
    assert (ROOT / "docs" / "reproduction.md").read_text() == given, "python -m experiments.report writes it"


def test_the_command_writes_page_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name, results in STUDIES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    monkeypatch.setattr(sys, "argv", ["report", f"--results={tmp_path}", f"--docs={tmp_path / 'docs'}"])
    report.main()
    assert (tmp_path / "docs" / "reproduction.md").read_text() == report.page(STUDIES)
    assert sorted(path.name for path in (tmp_path / "docs" / "images").iterdir()) == ["figure1.png", "whitebox.png"]
