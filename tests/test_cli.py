"""Tests of keras_mart.cli: flags, run directories, the files of a run, and every error with its command."""

import contextlib
import csv
import functools
import importlib.metadata
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import conv_network, linear_network

from keras_mart import (
    CW,
    FGSM,
    L2,
    NFGSM,
    PGD,
    Linf,
    callbacks,
    cli,
    datasets,
    files,
    folding,
    networks,
    optimizers,
    watch,
)
from keras_mart.cli import build, flags, help, optimizer, rules, saving, workdir
from keras_mart.cli.flags import FLAGS
from keras_mart.cli.train import EpochLines
from keras_mart.evaluation import Table, state
from keras_mart.evaluation.record import attack as parameters
from keras_mart.methods import METHODS, model

NEEDY = ("mma", "hat", "rslad")  # methods with a required flag
PACKAGE = pathlib.Path(cli.__file__).parents[1]
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TRAIN, TEST, CLASSES = 40, 12, 3
VALIDATION = TRAIN // 10
BATCH = 10
STEPS = (TRAIN - VALIDATION) // BATCH


class Result(NamedTuple):
    status: int
    out: str
    err: str


def command(*arguments):
    """Runs the program in this process; returns its output and exit status."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    policy = keras.config.dtype_policy()
    FLAGS.unparse_flags()
    argv = mock.patch.object(sys, "argv", ["keras-mart", *map(str, arguments)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.run()
        except SystemExit as end:
            status = end.code or 0
        finally:
            keras.config.set_dtype_policy(policy)
            folding.enable()
    return Result(status, out.getvalue(), err.getvalue())


def parse(*arguments):
    FLAGS.unparse_flags()
    flags.parse(["keras-mart", *map(str, arguments)])


@pytest.fixture(autouse=True)
def fresh_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    FLAGS.unparse_flags()


def arrays(**changes):
    random = np.random.RandomState(0)
    whole = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        whole[f"x_{split}"] = random.randint(0, 256, [count, 8, 8]).astype("uint8")
        whole[f"y_{split}"] = np.arange(count) % CLASSES
    return {key: value for key, value in (whole | changes).items() if value is not None}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Returns the flags of a run that takes seconds."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays())
    network = conv_network((8, 8, 1), CLASSES)
    head = network.layers[-1]
    head.set_weights([np.roll(each, 1, -1) for each in head.get_weights()])  # then more than one image is correct
    network.save(path.with_name("network.keras"))
    return [
        f"--dataset=npz:{path}", f"--batch_size={BATCH}", f"--network={path.with_name('network.keras')}",
        "--steps=1", "--step_size=0.008", "--learning_rate=0.1", "--epochs=1", "--attacks=fgsm,pgd1",
        "--checked_examples=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def of_zoo(tiny):
    """The same with a network of the zoo, which takes longer to trace."""
    wide_resnet = ["--network=wide_resnet", "--depth=10", "--width=1"]
    return [*(flag for flag in tiny if not flag.startswith("--network")), *wide_resnet]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Returns a run directory after training, evaluation, report and export, and the output."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, command(*tiny, f"--workdir={path}")


@pytest.fixture
def run(finished, tmp_path):
    """Returns a copy of the finished run that may be changed."""
    return shutil.copytree(finished[0], tmp_path / "run")


def attacks_of(run):
    return json.loads((run / "evaluation.json").read_text())["best"]["attacks"]


def history(path):
    with (path / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_writes_all_files(finished, tiny):
    path, result = finished
    assert result.status == 0, result.err
    assert sorted(file.name for file in path.iterdir()) == [
        "best.keras", "best.npz", "checkpoints", "diagnosis.json", "evaluation.json", "export", "flags.cfg",
        "gallery.npz", "history.csv", "last.keras", "last.npz", "report.html", "tensorboard",
    ]  # fmt: skip
    assert set((path / "flags.cfg").read_text().split()) == {"--method=mart", *tiny}
    assert [row["epoch"] for row in history(path)] == ["1"]
    assert float(history(path)[0]["learning_rate"]) == pytest.approx(0.1)
    assert {"loss", "val_natural_accuracy", "val_adversarial_accuracy"} <= set(history(path)[0])
    assert list((path / "tensorboard").iterdir())
    for part in (f"{path}: training mart, epochs 1 to 1", "linf ball of 0.03137", "pgd1", f"{path / 'export' / '1'}"):
        assert part in result.out


def test_evaluation_and_export_are_of_the_best_checkpoint(finished, tiny):
    path, _ = finished
    model = keras.saving.load_model(path / "best.keras")
    assert int(model.step) == STEPS
    images, labels = next(iter(datasets.load(tiny[0].removeprefix("--dataset="), "test", batch_size=TEST)))
    logits = model.predict(images, verbose=0)
    record = json.loads((path / "evaluation.json").read_text())
    threat = Linf(8 / 255)
    assert record["best"]["attacks"] == {"fgsm": parameters(FGSM(threat)), "pgd1": parameters(PGD(threat, 1))}
    assert record["best"]["threat"] == {"norm": "Linf", "epsilon": 8 / 255}
    assert record["best"]["versions"]["keras"] == keras.__version__ and record["best"]["precision"] == "float32"
    outcomes = Table.load(path / "best.npz")
    np.testing.assert_array_equal(outcomes.predictions["natural"], logits.argmax(-1))
    assert record["best"] == json.loads(outcomes.to_json())
    assert record["best"]["examples"] == record["last"]["examples"] == TEST
    assert record["best"]["accuracy"]["natural"] == pytest.approx(np.mean(logits.argmax(-1) == labels))
    served = tf.saved_model.load(path / "export" / "1").signatures["serving_default"]
    np.testing.assert_allclose(served(images=images)["logits"], logits, atol=1e-5)


def test_a_finished_run_keeps_its_results_and_cannot_have_fewer_epochs(tiny, run):
    before = {file.name for file in run.iterdir()}
    assert "already trained" in command(*tiny, f"--workdir={run}", "--resume", "--mode=train").out
    assert {file.name for file in run.iterdir()} == before
    (run / "history.csv").write_text("epoch\n1\n2\n")
    flags_before = (run / "flags.cfg").read_text()
    result = command(*tiny, f"--workdir={run}", "--resume", "--mode=train")
    assert result.status == 2 and "has already trained 2 epochs. Received: --epochs=1" in result.err
    assert (run / "flags.cfg").read_text() == flags_before


def test_a_run_cannot_resume_with_data_of_another_size(tiny, run, tmp_path):
    count = TRAIN + 2 * BATCH
    images = np.zeros([count, 8, 8], "uint8"), np.arange(count) % CLASSES
    (path,) = [pathlib.Path(flag.partition(":")[2]) for flag in tiny if flag.startswith("--dataset=")]
    whole = path.read_bytes()
    try:
        np.savez(path, **arrays(x_train=images[0], y_train=images[1]))
        result = command(*tiny, f"--workdir={run}", "--resume", "--mode=train", "--epochs=2")
    finally:
        path.write_bytes(whole)
    assert result.status == 2
    assert (
        f"same as at the start of the run: {STEPS} batches per epoch. Received: {(count - count // 10) // BATCH}"
        in result.err
    )
    assert history(run)


def test_existing_run_is_refused(run, tiny):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    result = command(*tiny, f"--workdir={run}")
    assert result.status == 2
    assert f"{run} contains files" in result.err and "--resume" in result.err
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_finished_run_can_be_extended(run, tiny):
    first = history(run)[0]
    result = command(*tiny, f"--workdir={run}", "--resume", "--epochs=2", "--mode=train")
    assert result.status == 0, result.err
    assert "epochs 2 to 2" in result.out
    of_the_test_set = ("evaluation.json", "best.npz", "last.npz", "diagnosis.json", "gallery.npz")
    assert not [name for name in of_the_test_set if (run / name).exists()]  # they were of other checkpoints
    rows = history(run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0] == first and np.isfinite(float(rows[1]["loss"]))
    assert int(keras.saving.load_model(run / "last.keras").step) == 2 * STEPS
    best = keras.saving.load_model(run / "best.keras")
    values = [float(row["val_adversarial_accuracy"]) for row in rows]
    assert int(best.step) == STEPS * (1 + values.index(max(values)))


def test_resume_of_a_finished_run_goes_straight_to_evaluation(run, tiny):
    result = command(*tiny, f"--workdir={run}", "--resume", "--attacks=fgsm", "--mode=train,evaluate")
    assert result.status == 0, result.err
    assert "mart is already trained, epochs done: 1" in result.out
    assert list(attacks_of(run)) == ["fgsm"]
    assert len(history(run)) == 1


def test_resume_requires_the_same_flags(run, tiny):
    result = command(*tiny, f"--workdir={run}", "--resume", "--epochs=2", "--epsilon=0.25", "--method=at")
    assert result.status == 2
    assert "started with --method=mart. Received instead: --epsilon=0.25 --method=at" in result.err
    assert f"--flagfile={run / 'flags.cfg'}" in result.err
    assert set((run / "flags.cfg").read_text().split()) == {"--method=mart", *tiny}


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_resume_with_more_epochs_if_the_rate_does_not_depend_on_them(schedule, run, tiny):
    with (run / "flags.cfg").open("a") as file:
        file.write(f"--schedule={schedule}\n")
    result = command(*tiny, f"--workdir={run}", "--resume", f"--schedule={schedule}", "--epochs=2", "--mode=train")
    if schedule == "constant":
        assert result.status == 0 and len(history(run)) == 2
    else:
        assert result.status == 2
        for part in (
            "The rate of --schedule=cosine depends on --epochs.",
            "started with --epochs=1.",
            "instead: --epochs=2",
        ):
            assert part in result.err


def test_resume_requires_a_saved_state(run, tiny):
    shutil.rmtree(run / "checkpoints")
    result = command(*tiny, f"--workdir={run}", "--resume", "--epochs=2")
    assert result.status == 2
    assert f"{run / 'checkpoints'} is missing" in result.err
    assert len(history(run)) == 1


@pytest.mark.parametrize("name", ["best.keras", "last.keras"])
def test_truncated_checkpoint(run, name):
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: len(whole) // 2])
    result = command(f"--workdir={run}", "--mode=evaluate")
    assert result.status == 2
    assert f"The checkpoint {run / name} cannot be read" in result.err
    assert len(history(run)) == 1


def test_damaged_checkpoint(run):
    content = bytearray((run / "best.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "best.keras").write_bytes(content)
    result = command(f"--workdir={run}", "--mode=export")
    assert result.status == 2
    assert f"The checkpoint {run / 'best.keras'} cannot be read" in result.err and "is damaged" in result.err
    assert [path.name for path in (run / "export").iterdir()] == ["1"]


def test_missing_checkpoint(run):
    (run / "best.keras").unlink()
    result = command(f"--workdir={run}", "--mode=export")
    assert result.status == 2
    assert f"There is no checkpoint {run / 'best.keras'}. Train first" in result.err


def test_evaluate_loads_the_flags_of_the_run(run):
    before = (run / "last.keras").read_bytes()
    result = command("--mode=evaluate", f"--workdir={run}", "--attacks=CW", "--epochs=7", "--batch_size=5")
    assert result.status == 0, result.err
    assert "without training these flags have no effect: --epochs\n" in result.out
    assert attacks_of(run) == {"cw": parameters(CW(Linf(8 / 255)))}
    assert (run / "last.keras").read_bytes() == before
    assert [path.name for path in (run / "export").iterdir()] == ["1"]


def test_evaluate_in_a_wider_ball(run):
    result = command("--mode=evaluate", f"--workdir={run}", "--attacks=fgsm", "--epsilon=1/8")
    assert "linf ball of 0.125" in result.out and "Note" not in result.out
    assert attacks_of(run) == {"fgsm": parameters(FGSM(Linf(1 / 8)))}


@pytest.mark.parametrize("ball", ["--epsilon=1/8", "--threat=l2", "--threat=l2 --epsilon=1/2"])
def test_another_ball_needs_another_evaluation_epsilon_if_the_run_has_one(ball, run):
    with (run / "flags.cfg").open("a") as flagfile:
        flagfile.write("--evaluation_epsilon=8/255\n")
    given = ["--mode=evaluate", f"--workdir={run}", "--attacks=fgsm", *ball.split()]
    result = command(*given)
    assert result.status == 2 and "has its own --evaluation_epsilon, 0.0313725" in result.err
    assert " ball of 0.125" in command(*given, "--evaluation_epsilon=1/8").out


@pytest.mark.parametrize(("arguments", "fast"), [([], True), (["--nofold"], False)])
def test_fast_views_can_be_turned_off(arguments, fast, run):
    with (
        mock.patch.object(folding, "view", wraps=folding.view) as view,
        mock.patch.object(folding, "graph_of") as made,
    ):
        made.return_value = None
        command("--mode=evaluate", f"--workdir={run}", "--attacks=fgsm", *arguments)
    assert view.called
    assert made.called == fast


def test_evaluate_a_sample(run):
    kept = []
    for seed in (1, 1, 2):
        result = command("--mode=evaluate", f"--workdir={run}", "--attacks=", "--examples=5", f"--seed={seed}")
        assert result.status == 0 and "(5 examples, float32)" in result.out and "Note" not in result.out
        kept.append(Table.load(run / "best.npz").labels.tolist())
    assert kept[0] == kept[1] != kept[2]


def test_evaluate_stopping_early(run):
    result = command("--mode=evaluate", f"--workdir={run}", "--attacks=fgsm,pgd2", "--stop_early", "--epsilon=1/4")
    assert result.status == 0 and "Each attack ran on the examples correct" in result.out
    best = json.loads((run / "evaluation.json").read_text())["best"]
    assert best["stop_early"] and best["accuracy"]["pgd2"] == best["accuracy"]["worst_case"]


@pytest.mark.parametrize("source", ["best.keras", "export"])
def test_transfer_from_a_source(source, run):
    flags = ["--mode=evaluate", f"--workdir={run}", f"--source={run / source}"]
    result = command(*flags, "--attacks=fgsm,transfer-fgsm", "--epsilon=1/4")
    assert result.status == 0, result.err
    record = json.loads((run / "evaluation.json").read_text())
    best = record["best"]["accuracy"]
    assert best["transfer-fgsm"] == best["fgsm"]
    attack = record["best"]["attacks"]["transfer-fgsm"]
    assert attack["class"] == "Transfer" and attack["attack"] == parameters(FGSM(Linf(1 / 4)))
    assert (attack["source"]["weights_sha256"] == record["best"]["weights_sha256"]) == (source == "best.keras")


def test_a_source_without_gradient_fools_nothing(run, tmp_path):
    blind = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    blind.set_weights([0 * weight for weight in blind.get_weights()])
    blind.save(tmp_path / "blind.keras")
    flags = ["--mode=evaluate", f"--workdir={run}", f"--source={tmp_path / 'blind.keras'}"]
    assert command(*flags, "--attacks=fgsm,transfer-fgsm", "--epsilon=1/4").status == 0
    best = json.loads((run / "evaluation.json").read_text())["best"]["accuracy"]
    assert best["transfer-fgsm"] == best["natural"] > best["fgsm"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--attacks=transfer-fgsm", "A transfer attack needs a source model (--source). Received: 'transfer-fgsm'"),
        ("--attacks=transfer-fgsm --source=nowhere.keras", "Received: 'nowhere.keras', which does not exist"),
        ("--attacks=transfer-fgsm --source=.", "There must be a SavedModel in the folder. Received: '.'"),
        ("--attacks=autoatack", "Did you mean 'autoattack'?"),
        ("--examples=0", "must be an integer of at least 1. Received: '0'"),
    ],
)
def test_wrong_evaluations(arguments, message, run):
    result = command("--mode=evaluate", f"--workdir={run}", *arguments.split())
    assert result.status == 2 and message in result.err


def test_a_compound_attack_logs_its_progress(run, monkeypatch):
    monkeypatch.setattr("keras_mart.attacks.autoattack.VERSIONS", {"standard": ("apgd-ce",)})
    result = command("--mode=evaluate", f"--workdir={run}", "--attacks=autoattack", "--examples=3")
    assert result.status == 0 and "autoattack/apgd-ce: " in result.out


def test_files_of_the_report(run):
    page = (run / "report.html").read_text()
    assert "<section" in page and "mart" in page
    diagnosis = json.loads((run / "diagnosis.json").read_text())
    assert diagnosis["examples"] == 2 and diagnosis["curve"]["epsilon"][0] == 0
    with np.load(run / "gallery.npz") as gallery:
        assert gallery["images"].shape == gallery["adversarial"].shape
        assert np.max(np.abs(gallery["images"] - gallery["adversarial"])) <= 8 / 255 + 1e-6


def test_steps_and_the_time_left_are_printed(tiny, tmp_path):
    result = command(*tiny, f"--workdir={tmp_path / 'run'}", "--epochs=3", "--method=standard", "--attacks=")
    steps = [line[:5] for line in result.out.splitlines() if line.startswith("[")]
    assert steps == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"], result.err
    epochs = re.findall(r"^Epoch (\d)/3 - [\d.]+s( - \d+:\d\d:\d\d left)? - loss: .* - val_loss", result.out, re.M)
    assert [(epoch, bool(left)) for epoch, left in epochs] == [("1", True), ("2", True), ("3", False)]


def test_the_last_lines_are_the_result(finished):
    path, result = finished
    *_, heading, rule, row, blank, conclusion, certainty, space, report = result.out.splitlines()
    assert heading.startswith("Best checkpoints on the test set")
    assert rule.startswith("method") and row.startswith("mart") and blank == space == ""
    assert conclusion.startswith("mart classifies ") and certainty.startswith("Stronger attacks")
    assert report == f"Report: {path / 'report.html'}"


def test_tensorflow_starts_in_silence():
    """What it writes is shown only where the program ends before it has started."""
    python = functools.partial(subprocess.run, capture_output=True, text=True)
    failed = python([sys.executable, "-m", "keras_mart.main", "--network=resnt18"], cwd=PACKAGE.parent)
    assert failed.returncode == 2 and not failed.stdout
    message, others = failed.stderr.splitlines()
    assert message.startswith("keras_mart: ") and "Did you mean 'resnet18'?" in message
    assert others == "All flags: --help"
    ended = python(
        [sys.executable, "-c", "import startup; startup.hold(); raise SystemExit('no TensorFlow')"], cwd=PACKAGE
    )
    assert ended.stderr == "no TensorFlow\n"


def test_on_a_terminal_the_time_left_stands_above_the_progress_bar(monkeypatch, capsys):
    lines = EpochLines(2)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines.on_train_begin()
    lines.on_epoch_begin(0)
    lines.on_epoch_end(0, {"loss": 1.0})  # here the bar is not finished
    assert capsys.readouterr().out == ""
    lines.on_epoch_begin(1)
    assert capsys.readouterr().out == "0:00:00 left\n"


def test_export_only(run):
    result = command("--mode=export", f"--workdir={run}")
    assert result == (0, f"Exported the best checkpoint to {run / 'export' / '2'}\n", "")


def test_evaluate_accepts_only_methods_of_the_run(run):
    result = command("--mode=evaluate", f"--workdir={run}", "--method=at")
    assert result.status == 2
    assert f"The run in {run} trained mart. Received: --method=at" in result.err


class Interrupted(Exception):
    """Interrupts an evaluation."""


def test_an_interrupted_evaluation_resumes(run, monkeypatch):
    flags = ["--mode=evaluate", f"--workdir={run}", "--attacks=fgsm,pgd2", "--evaluation_batch_size=5"]
    assert command(*flags).status == 0
    whole, expected = Table.load(run / "best.npz"), json.loads((run / "evaluation.json").read_text())["best"]
    add, count = state.State.add, []

    def interrupted(kept, *arguments):
        add(kept, *arguments)
        count.append(arguments)
        if len(count) == 5:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(state.State, "add", interrupted)
        with pytest.raises(Interrupted):
            command(*flags)
        assert (run / "evaluating" / "best" / "done.npz").exists()
        refused = command("--mode=evaluate", f"--workdir={run}", "--attacks=fgsm,cw")
        assert refused.status == 2 and "was started with other attacks" in refused.err
        assert command(*flags).status == 0
        assert len(count) == 3 * 3  # three batches for natural images and for each attack, none of them twice
    again = Table.load(run / "best.npz")
    assert not (run / "evaluating").exists()
    assert {**json.loads(again.to_json()), "seconds": None} == {**expected, "seconds": None}
    for name, predicted in whole.predictions.items():
        np.testing.assert_array_equal(again.predictions[name], predicted)


def test_two_evaluations_of_one_run_at_once(run):
    flags = ["--mode=evaluate", f"--workdir={run}", "--attacks="]
    (run / "evaluating").mkdir()
    with files.locked(run / "evaluating" / "lock"):
        result = command(*flags)
    assert result.status == 2 and f"Only one process at a time may work in {run / 'evaluating'}" in result.err
    assert command(*flags).status == 0


@pytest.mark.parametrize("source", ["best.keras", "export"])
def test_a_model_without_a_run(source, run, tiny, tmp_path):
    mode, where = "--mode=evaluate,report,export", f"--workdir={tmp_path / 'judged'}"
    others = [tiny[0], "--attacks=fgsm", "--epsilon=1/4", "--checked_examples=2"]
    result = command(mode, f"--model={run / source}", where, *others)
    assert result.status == 0, result.err
    assert sorted(path.name for path in (tmp_path / "judged").iterdir()) == [
        "best.npz", "diagnosis.json", "evaluation.json", "export", "flags.cfg", "gallery.npz", "report.html",
    ]  # fmt: skip
    assert f"Exported {run / source} to {tmp_path / 'judged' / 'export' / '1'}" in result.out
    found = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert "last" not in found and found["best"]["threat"] == {"norm": "Linf", "epsilon": 1 / 4}
    assert command("--mode=evaluate", f"--workdir={run}", "--attacks=fgsm", "--epsilon=1/4").status == 0
    assert found["best"]["accuracy"] == json.loads((run / "evaluation.json").read_text())["best"]["accuracy"]
    assert command("--mode=report", where).status == 0  # loads the flags of the evaluation
    assert "was not trained by this package" in (tmp_path / "judged" / "report.html").read_text()
    assert command("--mode=evaluate", f"--model={run / source}", where, *others).status == 0


def test_default_directory_of_a_model(run, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("--mode=evaluate", f"--model={run / 'best.keras'}", tiny[0], "--attacks=").status == 0
    assert (tmp_path / "runs" / "tiny-best" / "evaluation.json").exists()


@pytest.fixture
def of_torch(of_zoo, tmp_path):
    """Returns the PyTorch file of a network, which is in best.keras too, and the network."""
    parse(*of_zoo)
    network = build.network()
    network.set_weights([each + 0.1 for each in network.get_weights()])  # not the initial statistics
    network.save(tmp_path / "best.keras")
    networks.save_torch(network, tmp_path / "best.pt")
    return tmp_path / "best.pt", network


def test_a_pytorch_file_is_evaluated(of_torch, of_zoo, tiny, tmp_path):
    where, others = f"--workdir={tmp_path / 'judged'}", [*of_zoo[:2], *of_zoo[-3:], "--attacks=fgsm"]
    result = command("--mode=evaluate", "--model=torch:best.pt", where, *others)
    assert result.status == 0, result.err
    assert f"torch:{of_torch[0]} on the test set" in result.out
    ours = ["--mode=evaluate", "--model=best.keras", f"--workdir={tmp_path / 'ours'}", *tiny[:2], "--attacks=fgsm"]
    assert command(*ours).status == 0
    found, expected = (
        json.loads((tmp_path / each / "evaluation.json").read_text())["best"] for each in ("judged", "ours")
    )
    assert found["accuracy"] == expected["accuracy"]
    refused = command("--mode=evaluate", "--model=torch:other.pt", "--network=applications:MobileNetV2", tiny[0])
    assert (
        refused.status == 2
        and "A PyTorch file contains weights only: --network must be one of small_cnn" in refused.err
    )


def test_a_pytorch_file_is_trained_on(of_torch, of_zoo):
    parse(*of_zoo, "--weights=torch:best.pt")
    built = build.network()
    for ours, theirs in zip(built.get_weights(), of_torch[1].get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            "",
            "--model can be evaluated, reported and exported (--mode=evaluate,report,export); --network trains a file. "
            "Received: --model=best.keras with --mode",
        ),
        ("--mode=evaluate --method=at", "Received: --model=best.keras with --method=at"),
        ("--mode=evaluate --weights=none", "Received: --model=best.keras with --weights=none"),
        ("--mode=evaluate --workdir=.", "There is another run in .."),
        ("--mode=evaluate --workdir=several", "There is another run in several"),
        ("--mode=evaluate --workdir=judged", "There is another run in judged"),
        ("--mode=evaluate --model=nowhere.keras --workdir=other", "nowhere.keras', which does not exist"),
        ("--mode=evaluate --attacks=fsgm --workdir=other", "Did you mean 'fgsm'?"),
    ],
)
def test_a_model_that_cannot_be_evaluated(arguments, message, run, tiny, monkeypatch):
    monkeypatch.chdir(run)
    for folder, kept in (("several", "--method=at,mart\n"), ("judged", f"--model={run / 'last.keras'}\n")):
        (run / folder).mkdir()
        (run / folder / "flags.cfg").write_text(kept)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = command(tiny[0], "--model=best.keras", *arguments.split())
    assert result.status == 2 and message in result.err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=["keras", "h5"])
def somebodys(request, tmp_path_factory):
    """Returns the file of a network with 5 classes and softmax outputs for 12x12 images in [0, 255]."""
    keras.utils.set_random_seed(0)
    images = keras.Input((12, 12, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3, strides=2, activation="relu")(images))
    network = keras.Model(images, keras.layers.Dense(5, activation="softmax")(x))
    path = tmp_path_factory.mktemp("somebodys") / f"photos.{request.param}"
    network.save(path)
    return network, path


def test_trains_a_network_from_elsewhere(somebodys, tiny, tmp_path):
    network, path = somebodys
    others = [flag for flag in tiny if not flag.startswith(("--network", "--depth", "--width"))]
    result = command(*others, f"--network={path}", "--preprocessing=255", "--learning_rate=1e-9", "--mode=train")
    assert result.status == 0, result.err
    for said in ("its last activation is removed", "for 3 classes", "multiplied by 255", "images of 8x8"):
        assert result.out.count(said) == 1
    trained = keras.saving.load_model(tmp_path / "runs" / "tiny-photos" / "best.keras").network
    kernel = next(each for each in trained.weights if tuple(each.shape) == (3, 3, 1, 2))
    np.testing.assert_allclose(kernel, network.layers[1].kernel, atol=1e-6)  # training starts from its weights
    assert command(*others, f"--network={path}", "--preprocessing=255", "--resume", "--mode=train").status == 2
    assert command("--mode=evaluate", "--workdir=runs/tiny-photos", "--attacks=").status == 0


def test_trains_on_the_averaged_weights_of_a_run(tiny, tmp_path):
    flags = [*tiny, "--mode=train", "--weight_average=0.9"]
    assert command(*flags, "--workdir=first").status == 0
    others = [flag for flag in flags if not flag.startswith(("--network", "--depth", "--width", "--weight_average"))]
    result = command(*others, "--network=first/best.keras", "--workdir=second")
    assert result.status == 0, result.err
    first, second = (keras.saving.load_model(f"{name}/best.keras") for name in ("first", "second"))
    judged, trained = (each.get_weights() for each in (first.averaged_network, second.network))
    assert any((one != other).any() for one, other in zip(judged, trained, strict=True))
    assert len(second.trainable_variables) == len(first.trainable_variables)


def test_evaluates_a_network_from_elsewhere(somebodys, tiny, tmp_path):
    network, path = somebodys
    flags = [f"--model={path}", "--preprocessing=255", "--mode=evaluate,export", "--attacks=", "--workdir=judged"]
    result = command(*flags, tiny[0])
    assert result.status == 0, result.err
    table = Table.load(tmp_path / "judged" / "best.npz")
    images = np.concatenate([images for images, _ in datasets.load(tiny[0].partition("=")[2], "test")])
    probabilities = network(tf.image.resize(images, (12, 12)) * 255, training=False)
    np.testing.assert_array_equal(table.predictions["natural"], np.argmax(probabilities, axis=1))
    served = tf.saved_model.load(str(tmp_path / "judged" / "export" / "1")).signatures["serving_default"]
    np.testing.assert_allclose(served(images=tf.constant(images))["probabilities"], probabilities, atol=1e-6)


def test_a_network_of_keras_applications(tmp_path, monkeypatch):
    made = mock.Mock(side_effect=ValueError("made"))
    monkeypatch.setattr(build.networks, "application", made)
    result = command("--network=applications:MobileNetV2", "--weights=imagenet", "--mode=train")
    assert (result.status, result.err) == (2, "keras_mart: made\n")
    made.assert_called_with("MobileNetV2", weights="imagenet", num_classes=10, input_shape=(8, 8, 1))


def test_networks_of_recipes(monkeypatch):
    shape = mock.Mock(num_classes=10, input_shape=(32, 32, 3))
    monkeypatch.setattr(build, "_described", lambda: shape)
    recipe = ["--activation=silu", "--bn_momentum=0.99", "--padding=same", "--normalisation=cifar10"]
    parse("--network=wide_resnet", "--depth=10", "--width=1", *recipe)
    rules.check()
    options = {"activation": "silu", "bn_momentum": 0.99, "padding": "same", "normalisation": "cifar10"}
    assert build.network().to_json() == build.zoo.wide_resnet(10, 1, **options).to_json()
    for name, options in (("preact_resnet18", [*recipe, "--shortcut=3x3"]), ("vit_tiny", ["--depth=1", "--width=6"])):
        parse(f"--network={name}", *options)
        rules.check()
        assert build.network().name == name
    parse("--network=resnet", "--depth=34", "--normalisation=cifar100")
    rules.check()
    assert build.network().name == "resnet34"


def test_evaluate_without_a_run():
    result = command("--mode=evaluate")
    assert result.status == 2
    assert "There is no run in runs/digits-small_cnn (flags.cfg is missing). --workdir names the run" in result.err


def test_several_methods(tiny, tmp_path):
    root = tmp_path / "several"
    methods = ["--method=standard,trades", "--beta=3", "--attacks="]
    result = command(*tiny, f"--workdir={root}", *methods, "--mode=train,evaluate")
    assert result.status == 0, result.err
    table = result.out[result.out.index("Best checkpoints") :].splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["method", "standard", "trades"]
    assert table[1].split()[1:] == ["natural", "worst_case"]
    assert sorted(path.name for path in root.iterdir()) == ["flags.cfg", "standard", "trades"]
    assert "--beta" not in (root / "standard" / "flags.cfg").read_text()
    assert keras.saving.load_model(root / "trades" / "best.keras").beta == 3
    for path, chosen in ((root / "standard", []), (root, ["--method=standard"])):
        result = command("--mode=evaluate", f"--workdir={path}", "--attacks=", *chosen)
        assert result.status == 0, result.err
        assert f"{root / 'standard'}: best checkpoint" in result.out and "trades" not in result.out


@pytest.mark.filterwarnings("error::UserWarning")
def test_schedule_and_validation_count_epochs_from_1(tiny, tmp_path):
    schedule = ["--epochs=4", "--validate_every=3", "--decay_epochs=2,4", "--batch_size=64", "--mode=train"]
    result = command(*tiny, "--method=standard", *schedule, f"--workdir={tmp_path / 'run'}")
    assert result.status == 0, result.err
    rows = history(tmp_path / "run")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.1, 0.01, 0.01, 0.001])
    assert [row["epoch"] for row in rows if row["val_natural_accuracy"]] == ["1", "3", "4"]
    assert (tmp_path / "run" / "best.keras").exists()


def test_steps_per_execution_changes_nothing(finished, tiny, tmp_path):
    one, two = finished[0], tmp_path / "run"
    flags = ["--steps_per_execution=2", "--save_every=1steps", "--mode=train", f"--workdir={two}"]
    assert command(*tiny, *flags).status == 0
    assert (one / "history.csv").read_text() == (two / "history.csv").read_text()
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == ["0000000002", "0000000003"]  # the newest


def test_several_workers_check_for_signals_after_each_validation_batch(monkeypatch):
    saver = saving.Saver(None, saving.Progress(), 1, (1, "epochs"), "", None)
    asked = []
    monkeypatch.setattr(saver, "after_validation_steps", lambda: asked.append(1))
    monkeypatch.setattr(saver, "_workers", lambda: 2)
    saver.set_model(mock.Mock(test_function=lambda iterator: {}))
    for _ in range(3):
        saver.on_test_begin()
        saver.model.test_function(iter([]))
        saver.on_test_end()
    assert len(asked) == 3


def test_no_callback_makes_keras_wait_for_every_step():
    for callback in (saving.Saver, callbacks.EpochScalars, callbacks.RobustAccuracy, model._EpochCallback):
        for hook in ("on_batch_end", "on_train_batch_end", "on_test_batch_end"):
            assert getattr(callback, hook) is getattr(keras.callbacks.Callback, hook), (callback, hook)


def test_several_devices_precision_and_index(tiny, tmp_path, two_replicas, monkeypatch):
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices: two_replicas)
    how = ["--precision=mixed_bfloat16", "--strategy=mirrored", "--method=mma", "--max_epsilon=32/255"]
    result = command(*tiny, "--network=small_cnn", *how, "--mode=train", f"--workdir={tmp_path / 'run'}")
    assert result.status == 0, result.err
    assert "training mma on 2 devices" in result.out
    model = keras.saving.load_model(tmp_path / "run" / "last.keras")
    assert model.network.layers[1].compute_dtype == "bfloat16"
    assert model.margins.shape == (TRAIN - VALIDATION,)
    assert np.isfinite(float(history(tmp_path / "run")[0]["loss"]))


@pytest.mark.parametrize("text", ["8/255", " 8 / 255 ", f"{8 / 255}"])
def test_numbers_and_fractions(text):
    parse(f"--epsilon={text}")
    assert FLAGS.epsilon == 8 / 255


def test_flagfile_round_trip(tmp_path):
    given = ["--method=alp,CLP", "--form=original", "--beta=1/3", "--attacks=", "--decay_epochs=2,3", "--momentum=0"]
    given += ["--save_every=3", "--awp_gamma=0.01"]
    parse(*given, "--resume", "--workdir=somewhere", "--mode=train")
    before = {flag.name: flag.value for flag in flags.own_flags() if flag.name not in rules.COMMAND_FLAGS}
    (tmp_path / "flags.cfg").write_text(rules.as_text(FLAGS.method))
    parse(f"--flagfile={tmp_path / 'flags.cfg'}")
    assert {name: FLAGS[name].value for name in before} == before
    assert FLAGS.save_every == (3, "steps")
    assert (FLAGS.resume, FLAGS.workdir, FLAGS.mode) == (False, None, list(flags.MODES))


# The arguments after --workdir=new, and parts of the message.
WRONG = [
    ("--network=resnt18", "`network` must be one of small_cnn, resnet18, resnet,", "Did you mean 'resnet18'?"),
    ("--network=applications:MobilNetV2", "`applications:` must be one of", "Did you mean 'MobileNetV2'?"),
    ("--network=nowhere.keras --depth= --width=", "nowhere.keras', which does not exist"),
    ("--weights=imagenet", "--weights must be torch:<path> or none. Received: --network=wide_resnet with --weights=im"),
    ("--weights=torch:nowhere.pt", "No such file or directory: '/", "/nowhere.pt'"),
    (
        "--network=nowhere.keras --depth= --width= --weights=none",
        "--weights applies only to --network=applications, small_cnn, ",
    ),
    ("--preprocessing=tf", "--preprocessing applies only to --network=<file>. Received: --network=wide_resnet"),
    ("--preprocessing=tff", "must be one of tf, torch, caffe, or a number such as 255. Received: 'tff'"),
    ("--network=a.keras --depth= --width= --precision=mixed_bfloat16", "A network from a file keeps its own precision"),
    ("--method=martt", "`method` must be one of", "Did you mean 'mart'?"),
    ("--attacks=fgsm,PDG20", "`attacks` must be one of", "Did you mean 'pgd20'?"),
    ("--dataset=digit", "A dataset must be one of digits, tfds:<name>", "'digits'"),
    ("--start=unifrm", "`start` must be one of", "Did you mean 'uniform'?"),
    ("--mode=serve", "`mode` must be one of train, evaluate, report, export", "'serve'"),
    ("--mode=", "--mode", "1 or more values", "Received: ''"),
    ("--bta=6", "Unknown command line flag 'bta'"),
    ("--flagfile=none.cfg", "Unable to open flagfile", "none.cfg"),
    ("evaluate", "Arguments must be flags", "Received: evaluate"),
    (
        "--method=at --beta=6",
        "--beta applies only to --method=",
        "mart",
        "Received: --method=at with --beta=6.0",
        "--beta=",
    ),
    ("--method=trades,mart --form=original", "--form applies only to --method=alp, clp", "--method=trades,mart"),
    ("--max_epsilon=0.1", "--max_epsilon applies only to --method=mma", "--method=mart"),
    ("--method=mma", "--method=mma needs --max_epsilon"),
    ("--network=small_cnn", "--depth applies only to --network=resnet, wide_resnet, vit_tiny", "--network=small_cnn"),
    ("--network=resnet --width=", "`depth` must be one of 18, 34, 50. Received: 10"),
    ("--activation=sillu", "`activation` must be one of relu, silu", "Did you mean 'silu'?"),
    (
        "--network=resnet18 --depth= --width= --padding=same",
        "--padding applies only to --network=preact_resnet18, wide_resnet",
    ),
    ("--shortcut=3x3", "--shortcut applies only to --network=preact_resnet18. Received: --network=wide_resnet"),
    ("--normalisation=cifar10", "`normalisation` must be a pair (mean, std) with one value for each of the 1 channels"),
    ("--bn_momentum=1", "`bn_momentum` must be at least 0 and below 1. Received: bn_momentum=1.0"),
    ("--method=at,rslad", "--method=rslad needs --teacher"),
    ("--teacher=best.keras", "--teacher applies only to --method=hat, rslad", "--method=mart"),
    ("--method=hat --teacher=nowhere.keras", "Received: 'nowhere.keras', which does not exist"),
    ("--method=dkl --alpha=-1", "`alpha` must be finite and not negative. Received: alpha=-1.0"),
    ("--noise=3", "--noise applies only to --attack=nfgsm. Received: --attack=pgd with --noise=3.0"),
    ("--attack=nfgsm --steps=5", "--attack=nfgsm takes one step. Received: --steps=5"),
    ("--attack=nfgsm --start=zero", "--start applies only to --attack=pgd. Received: --attack=nfgsm with --start=zero"),
    (
        "--network=resnet18 --depth= --width= --dropout=0.1",
        "--dropout applies only to --network=small_cnn, wide_resnet",
    ),
    (
        "--optimizer=adam --momentum=0.5",
        "--momentum applies only to --optimizer=sgd",
        "--optimizer=adam",
        "--momentum=0.9",
    ),
    ("--augment=cutot", "`augment` must be one of none, crop_flip", "Did you mean 'cutout'?"),
    ("--augment=none,crop", "--augment=none cannot be combined with other names. Received: --augment=none,crop"),
    ("--augment=cutout,crop", "`augment` must contain at most one crop, at its beginning"),
    ("--method=at,mma --max_epsilon=0.1 --augment=crop,mixup", "--method=mma keeps", "--augment=crop,mixup"),
    ("--optimizer=adam --weight_decay=0.1", "--weight_decay applies only to --optimizer=sgd, adamw, lion"),
    ("--optimizer=adam --nodecay_all", "--decay_all applies only to --optimizer=sgd, adamw, lion"),
    ("--optimizer=lion --nesterov", "--nesterov applies only to --optimizer=sgd"),
    ("--epsilon=8/0", "--epsilon", "must be a number or a fraction such as 8/255. Received: '8/0'"),
    ("--epsilon=nan", "must be a number or a fraction"),
    ("--epsilon=1e999", "must be a number or a fraction"),
    ("--epsilon=-0.1", "`epsilon` must be finite and not negative. Received: epsilon=-0.1"),
    ("--evaluation_epsilon=-0.1", "`epsilon` must be finite and not negative. Received: epsilon=-0.1"),
    ("--step_size=-0.1", "`step_size` must be positive. Received: step_size=-0.1"),
    ("--steps=-1", "--steps", "must be an integer of at least 1. Received: '-1'"),
    ("--steps=1.5", "--steps", "must be an integer of at least 1. Received: '1.5'"),
    ("--seed=2147483648", "--seed", "must be an integer of at most 2147483647"),
    ("--epochs=0", "--epochs", "must be an integer of at least 1"),
    ("--batch_size=0", "--batch_size", "must be an integer of at least 1"),
    ("--decay_epochs=5,0", "--decay_epochs", "must be an integer of at least 1. Received: '0'"),
    ("--learning_rate=0", "--learning_rate must be positive. Received: --learning_rate=0.0"),
    ("--weight_decay=-1", "--weight_decay must not be negative. Received: --weight_decay=-1.0"),
    ("--clip_norm=0", "--clip_norm must be positive. Received: --clip_norm=0.0"),
    ("--schedule=cos", "`schedule` must be one of steps, cosine, onecycle, constant. Received: 'cos'"),
    (
        "--schedule=cosine --decay_epochs=75,90",
        "--decay_epochs applies only to --schedule=steps",
        "=75,90. To unset it",
        "epochs=",
    ),
    ("--warmup_epochs=1", "--warmup_epochs must be at least 0 and below --epochs", "--warmup_epochs=1.0 --epochs=1"),
    ("--warmup_epochs=-1", "--warmup_epochs must be at least 0 and below --epochs", "--warmup_epochs=-1.0"),
    (
        "--epochs=9 --warmup_epochs=3/2 --decay_epochs=5,2",
        "--decay_epochs must begin after the warm-up. Received: --decay_epochs=5,2 --warmup_epochs=1.5",
    ),
    ("--momentum=2", "`momentum` must be a float between [0, 1]"),
    ("--beta=-1", "`beta` must be finite and not negative. Received: beta=-1.0"),
    ("--depth=11", "`depth` must be 6 n + 4", "depth=11"),
    ("--dropout=1", "`dropout` must be at least 0 and below 1"),
    ("--method=trades --start=zero", "`attack` must not start at the natural image"),
    ("--save_every=0", "--save_every", "must be a number of steps or epochs: 100steps, 2epochs. Received: '0'"),
    ("--save_every=soon", "--save_every", "Received: 'soon'"),
    ("--awp_warmup=1", "--awp_warmup needs --awp_gamma. Received: only --awp_warmup=1"),
    ("--awp_gamma=0", "`gamma` must be positive"),
    ("--weight_average_start=1", "--weight_average_start needs --weight_average"),
    ("--label_smoothing=1", "`label_smoothing` must be at least 0 and below 1"),
    ("--epsilon_warmup=-1", "--epsilon_warmup must not be negative. Received: --epsilon_warmup=-1.0"),
    (
        "--method=mma --max_epsilon=0.2 --epsilon_warmup=2",
        "--epsilon_warmup applies only to --method=at, alp, clp, trades",
    ),
    ("--extra_fraction=0.3", "--extra_fraction needs --extra. Received: only --extra_fraction=0.3"),
    ("--extra_weight=2", "--extra_weight needs --extra. Received: only --extra_weight=2.0"),
    ("--labeller=best.keras", "--labeller needs --extra. Received: only --labeller=best.keras"),
    ("--extra=digits --extra_fraction=1", "--extra_fraction must lie between 0 and 1. Received: 1.0"),
    ("--extra=digits --batch_size=1", "--extra needs a --batch_size of at least 2. Received: --batch_size=1"),
    ("--extra=digits", "Labels must lie in [0, 3). Received: labels from 0 to 9 in --extra=digits"),
    ("--extra=npz:nowhere.npz", "An `npz:` dataset must be an existing file", "nowhere.npz"),
    ("--extra=digits --labeller=nowhere.keras", "Received: 'nowhere.keras', which does not exist"),
    ("--weight_average=1", "`weight_average` must be a decay between 0 and 1. Received: weight_average=1.0"),
    ("--on_nan=wait", "`on_nan` must be one of stop, skip"),
    ("--workers=2 --strategy=mirrored", "--strategy must be auto or multiworker", "--strategy=mirrored"),
    (
        "--epsilon=8",
        "`epsilon` must be at most 1, the largest Linf distance between two images in [0, 1]. Received: epsilon=8",
    ),
    ("--threat=l2 --epsilon=128", "Did you mean 128 / 255?"),
    ("--evaluation_epsilon=0.5 --step_size=2", "`step_size` must be at most 2 epsilon"),
    ("--method=mma --max_epsilon=32", "`max_epsilon` must be at most 1"),
    ("--method=at,mma --max_epsilon=-1", "`max_epsilon` must be positive and finite. Received: max_epsilon=-1.0"),
]


@pytest.mark.parametrize("case", WRONG, ids=[case[0] for case in WRONG])
def test_wrong_flags_create_no_directory(of_zoo, case):
    arguments, *message = case
    result = command(*of_zoo, "--workdir=new", *arguments.split())
    assert result.status == 2
    assert result.err.startswith("keras_mart: ")
    for part in message:
        assert part in result.err
    assert not os.listdir()


@pytest.fixture
def extra(tmp_path_factory):
    """Returns a folder with extra.npz, which has only images, and labellers of 3 and 4 classes."""
    folder = tmp_path_factory.mktemp("extra")
    np.savez(folder / "extra.npz", image=np.random.RandomState(1).randint(0, 256, [20, 8, 8, 1]).astype("uint8"))
    for classes in (CLASSES, CLASSES + 1):
        layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(classes)]
        keras.Sequential(layers).save(folder / f"{classes}.keras")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--extra without labels needs a --labeller. Received: only --extra=npz:"),
        ("--labeller={0}/4.keras", "--labeller must have as many classes as --dataset, 3. Received: 4"),
        ("--labeller={0}/3.keras --extra_weight=-1", "`weight` must be finite and not negative. Received: weight=-1.0"),
        ("--labeller={0}/3.keras --dataset=npz:{0}/large.npz", "--labeller must label the images: Images must have"),
        ("--extra=npz:{0}/large.npz", "images must have the same shape. Received: (8, 8, 1) and (9, 9, 1)"),
    ],
)
def test_wrong_extra_data_create_no_directory(arguments, message, tiny, extra):
    wide = np.zeros([TRAIN, 9, 9], "uint8"), np.zeros([TEST, 9, 9], "uint8")
    np.savez(extra / "large.npz", **arrays(x_train=wide[0], x_test=wide[1]))
    result = command(*tiny, f"--extra=npz:{extra / 'extra.npz'}", "--workdir=new", *arguments.format(extra).split())
    assert result.status == 2
    assert message in result.err
    assert not os.listdir()


@pytest.mark.parametrize(
    ("batch_size", "fraction", "labelled"), [(128, 0.5, 64), (128, 0.7, 38), (16, 0.99, 1), (16, 0.01, 15)]
)
def test_a_batch_keeps_its_size_with_extra_data(batch_size, fraction, labelled):
    parse("--extra=digits", f"--batch_size={batch_size}", f"--extra_fraction={fraction}", "--method=standard")
    data = build.training_data(METHODS["standard"], lambda: 0)
    assert len(data) == build.steps() == 1197 // labelled
    assert len(next(iter(data))[1]) == batch_size


def test_a_labeller_replaces_the_labels_of_extra_data_and_margins_are_kept_for_all(tiny, extra):
    parse(*tiny, f"--extra={tiny[0].removeprefix('--dataset=')}", f"--labeller={extra / '3.keras'}", "--max_epsilon=1")
    images, labels = build.extra()
    expected = keras.saving.load_model(extra / "3.keras")(images / 255).numpy().argmax(-1)
    np.testing.assert_array_equal(labels, expected)
    assert np.any(labels != datasets.load_extra(FLAGS.extra).labels)
    assert build.model("mma").num_examples == 2 * (TRAIN - VALIDATION)


def test_wrong_data_create_no_directory(of_zoo, tmp_path_factory):
    path = tmp_path_factory.mktemp("wrong") / "data.npz"
    wrong = command(*of_zoo, f"--dataset=npz:{path}", "--workdir=new")
    assert wrong.status == 2 and "must be an existing file" in wrong.err
    for changes, message in (
        ({"x_train": np.full([TRAIN, 8, 8], 255.0)}, "must lie in [0, 1]"),
        ({"y_train": np.zeros(TRAIN, int), "y_test": np.zeros(TEST, int)}, "at least 2"),
    ):
        np.savez(path, **arrays(**changes))
        wrong = command(*of_zoo, f"--dataset=npz:{path}", "--workdir=new")
        assert wrong.status == 2 and message in wrong.err
    assert not os.listdir()


def test_attack_flags_are_checked_even_if_no_method_needs_them(tiny):
    assert "`step_size` must be positive" in command(*tiny, "--method=standard", "--step_size=0").err
    assert not os.listdir()


def test_file_in_the_way(tiny, tmp_path):
    (tmp_path / "file").touch()
    for path, message in (("file", "must be a folder"), ("file/run", "must be writable")):
        result = command(*tiny, f"--workdir={path}")
        assert result.status == 2
        assert f"The run directory {message}. Received: {path}" in result.err
    assert os.listdir() == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_directory(tiny, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    result = command(*tiny, "--workdir=locked/run")
    assert result.status == 2
    assert "The run directory must be writable. Received: locked/run" in result.err


def test_resume_where_there_is_no_run(tiny, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    result = command(*tiny, "--workdir=other", "--resume")
    assert result.status == 2
    assert "other contains files but no run (flags.cfg is missing)" in result.err
    assert os.listdir("other") == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ("", "runs/digits-small_cnn"),
        ("--dataset=tfds:cifar10/plain --network=resnet18", "runs/cifar10-plain-resnet18"),
        ("--dataset=npz:../data/mnist.npz", "runs/mnist-small_cnn"),
        ("--dataset=folder:cats/", "runs/cats-small_cnn"),
        ("--workdir=~/run", f"{pathlib.Path.home()}/run"),
    ],
)
def test_default_run_directory(arguments, path):
    parse(*arguments.split())
    assert workdir.root_path() == pathlib.Path(path)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted. Resume it with the same flags and --resume."),
        (FloatingPointError("no number"), 3, "no number. --resume continues from the last saved state."),
        (watch.WorkerLost("worker 1 died"), 4, "keras_mart: worker 1 died\n"),
    ],
)
def test_messages_of_interrupted_training(error, status, message, tiny, monkeypatch):
    monkeypatch.setattr(cli, "train", mock.Mock(side_effect=error))
    result = command(*tiny, "--workdir=new")
    assert result.status == status
    assert message in result.err


@pytest.mark.parametrize(
    ("asked", "answers", "message"),
    [
        (str, ["--a", "--b"], "All workers must be given the same flags. Received: ['--a', '--b']"),
        (bool, [True, False], "All workers must share one run directory. Received: new, not seen by workers [1]"),
        (int, [-1, 30], "All workers must share one run directory. Received: new, at steps [-1, 30]"),
    ],
)
def test_workers_that_differ_are_refused(asked, answers, message, tiny, monkeypatch):
    gathered = lambda thing, strategy: answers if type(thing) is asked and thing != FLAGS.seed else [thing]  # noqa: E731
    monkeypatch.setattr(cli.distribution, "all_gather", gathered)
    result = command(*tiny, "--workdir=new")
    assert result.status == 2
    assert message in result.err


def test_failing_preparation_leaves_nothing(tiny, monkeypatch):
    monkeypatch.setattr(datasets, "describe", mock.Mock(side_effect=ConnectionError("no network")))
    result = command(*tiny, "--workdir=new", "--method=standard,at")
    assert result == (2, "", "keras_mart: no network\n")
    assert not os.listdir()


def test_verbosity_shows_where_an_error_comes_from(of_zoo):
    with pytest.raises(ValueError, match="`depth` must be"):
        command(*of_zoo, "--depth=11", "--verbosity=1")


# Shapes of the configs' data, which need not exist.
SHAPES = {"digits": (8, 8, 1), "tfds:mnist": (28, 28, 1), "tfds:cifar10": (32, 32, 3)}


@pytest.fixture
def described(monkeypatch):
    counts = dict.fromkeys(datasets.SPLITS, 100)
    describe = mock.Mock(side_effect=lambda name, **where: datasets.Description(10, SHAPES[name], counts))
    monkeypatch.setattr(datasets, "describe", describe)


@pytest.fixture
def linear(monkeypatch):
    """Replaces the network of the flags by a linear one."""
    layers = lambda: [keras.Input(SHAPES[FLAGS.dataset]), keras.layers.Flatten(), keras.layers.Dense(10)]  # noqa: E731
    monkeypatch.setattr(build, "network", lambda: keras.Sequential(layers()))


# Flags with which a config can take a step on small images without downloads.
SMALLER = {
    "imagenette.cfg": ["--image_size=32", "--weights=none", "--network=applications:MobileNet"],
    "cifar_wang.cfg": ["--extra=npz:more.npz"],
}


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.iterdir()))
def test_a_config_takes_a_step(config):
    random = np.random.RandomState(0)
    images, labels = random.randint(0, 256, [40, 8, 8, 3]).astype("uint8"), np.arange(40) % 10
    np.savez("made.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    np.savez("more.npz", image=images, label=labels)
    flagfile, made = f"--flagfile={CONFIGS / config}", ["--dataset=npz:made.npz", "--batch_size=4"]
    parse(flagfile)
    small = ["--depth=10", "--width=1"] if FLAGS.network == "wide_resnet" else []
    parse(flagfile, *made, "--steps=1", *small, *SMALLER.get(config, []))
    rules.check()
    assert list(build.attacks(FLAGS.attacks))[:3] == ["fgsm", "pgd20", "cw"]
    assert FLAGS.attacks[-1] == ("apgd-t" if config == "digits.cfg" else "autoattack")
    for name in FLAGS.method:
        model = build.model(name)
        assert type(model) is METHODS[name]
        assert FLAGS.beta is None or model.beta == FLAGS.beta
        model.run_eagerly = True
        before = model.network.get_weights()
        steps = 1 if float(model.optimizer.learning_rate) else 2  # a warm-up starts at 0
        model.fit(build.training_data(model, lambda: 0).take(steps), verbose=0)
        assert int(model.step) == steps
        assert any(np.any(one != other) for one, other in zip(before, model.network.get_weights(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_config_takes_any_method(method, described, linear, tmp_path):
    linear_network(np.ones((3072, 10)), np.ones(10), (32, 32, 3)).save(tmp_path / "teacher.keras")
    needed = [{"mma": "--max_epsilon=32/255"}.get(method, f"--teacher={tmp_path}/teacher.keras")] * (method in NEEDY)
    parse(f"--flagfile={CONFIGS / 'cifar_wrn.cfg'}", f"--method={method}", *needed)
    if "beta" not in rules.arguments_of(method):
        with pytest.raises(ValueError, match="--beta applies only to"):
            rules.check()
        parse(f"--flagfile={CONFIGS / 'cifar_wrn.cfg'}", f"--method={method}", *needed, "--beta=")
    rules.check()
    assert type(build.model(method)) is METHODS[method]


def test_flags_of_taught_methods_and_of_n_fgsm_reach_the_model(tiny, tmp_path):
    linear_network(np.ones((64, CLASSES)), np.ones(CLASSES), (8, 8, 1)).save(tmp_path / "teacher.keras")
    own = f"--teacher={tmp_path}/teacher.keras --gamma=0.25 --helper_scale=3 --attack=nfgsm --noise=3 --step_size=0.05"
    parse(*tiny, "--method=hat", *own.split())
    rules.check()
    build.check(["hat"])
    model = build.model("hat")
    assert (model.gamma, model.helper_scale, model.attack) == (0.25, 3.0, NFGSM(Linf(8 / 255), 3.0, step_size=0.05))
    np.testing.assert_array_equal(model.teacher.weights[0], 1.0)
    parse(*tiny, "--method=dkl", "--alpha=5", "--temperature=2")
    model = build.model("dkl")
    assert (model.alpha, model.temperature) == (5.0, 2.0)


def test_flags_reach_the_model(described, linear):
    arguments = "--max_epsilon=1/2 --min_margin=1/8 --bisection_steps=3 --threat=l2 --on_nan=skip --jit_compile=true"
    parse("--method=mma", "--epsilon=1/4", "--batch_size=10", "--accumulate=4", *arguments.split())
    model = build.model("mma")
    assert (model.accumulate, build.evaluation_batch_size()) == (4, 3)
    assert (model.max_epsilon, model.min_margin, model.bisection_steps) == (0.5, 0.125, 3)
    assert model.attack == PGD(L2(0.25), 10, step_size=1 / 16)
    assert model.on_nan == "skip" and model.get_compile_config()["jit_compile"] is True


def test_flags_of_recipes_reach_the_model(described, linear):
    arguments = "--label_smoothing=0.1 --epsilon_warmup=2.5 --attack_mode=training --statistics=adversarial"
    parse("--batch_size=10", "--weight_average=0.99", "--weight_average_start=3", *arguments.split())
    model, standard = build.model("mart"), build.model("standard")
    assert (model.label_smoothing, model.weight_average_start) == (0.1, 30)
    assert (model.attack_mode, model.statistics) == ("training", "adversarial")
    radii = [float(model.epsilon_schedule(step)) for step in (0, 5, 25, 99)]
    assert radii == pytest.approx([0, 8 / 255 / 5, 8 / 255, 8 / 255])
    assert (standard.label_smoothing, standard.epsilon_schedule) == (0.1, None)


def test_cifar_config_is_the_official_recipe():
    parse(f"--flagfile={CONFIGS / 'cifar.cfg'}")
    assert build.training_attack() == PGD(Linf(0.031), 10, step_size=0.007, start="gaussian")
    assert build.attacks(["pgd20", "cw"]) == {
        "pgd20": PGD(Linf(8 / 255), 20, step_size=0.1 * 8 / 255),
        "cw": CW(Linf(8 / 255), 30, step_size=0.1 * 8 / 255),
    }
    rates = np.asarray(optimizer.schedule(351)(np.arange(351 * FLAGS.epochs))).reshape(FLAGS.epochs, 351)
    for first, last, rate in ((1, 74, 1e-2), (75, 89, 1e-3), (90, 99, 1e-4), (100, 120, 1e-5)):
        np.testing.assert_allclose(rates[first - 1 : last], rate, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("steps --decay_epochs=4,3", [0, 1 / 3, 2 / 3, 1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", [0, 1 / 3, 2 / 3, *((1 + np.cos(np.pi * np.arange(5) / 5)) / 2)]),
        ("onecycle", [0, 1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2]),
        ("constant", [0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
    ],
)
def test_schedules_go_step_by_step(schedule, expected):
    parse("--epochs=4", "--warmup_epochs=3/2", "--learning_rate=1", *f"--schedule={schedule}".split())
    rules.check()
    np.testing.assert_allclose(optimizer.schedule(2)(np.arange(8)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "kind", "expected"),
    [
        ("--nesterov", optimizers.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0}),
        ("--optimizer=adam --clip_norm=5", keras.optimizers.Adam, {"weight_decay": None, "global_clipnorm": 5.0}),
        ("--optimizer=adamw --weight_decay=0.1 --nodecay_all", keras.optimizers.AdamW, {"weight_decay": 0.1}),
        ("--optimizer=lion --weight_decay=0.1", keras.optimizers.Lion, {"weight_decay": 0.1}),
    ],
)
def test_flags_reach_the_optimizer(arguments, kind, expected, described, linear):
    parse("--method=standard", *arguments.split())
    rules.check()
    model = build.model("standard")
    assert type(model.optimizer) is kind
    assert {name: getattr(model.optimizer, name) for name in expected} == expected
    assert model.decay_all is ("--nodecay_all" not in arguments)


@pytest.mark.parametrize("asked", ["--help", "-h", "--helpshort"])
def test_help_shows_each_flag_once_in_its_group(asked, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(help.WIDEST))
    result = command("--epochs=0", asked)
    assert result.status == 0 and not result.err
    sections = {}
    for line in result.out.splitlines():
        if line.endswith(":") and line[:-1] in flags.GROUPS:
            section = sections.setdefault(line[:-1], [])
        elif line.startswith("  --"):
            section.append(line.split()[0].removeprefix("--"))
    assert sections == {
        group: [flag.name for flag in members]
        for group, members in FLAGS.flags_by_module_dict().items()
        if group in flags.GROUPS
    }
    assert "Radius of the ball, for images in [0, 1]. Default: 8/255." in result.out
    assert max(map(len, result.out.splitlines())) <= help.WIDEST
    assert not os.listdir()


def test_console_script():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="keras-mart")
    assert script.load() is cli.run


# Data larger than memory


@pytest.fixture
def pictures(tmp_path, tiny, monkeypatch):
    """Returns the flags of a run on PNG files of several sizes, 10 per class in train/ and 3 in test/."""
    random = np.random.RandomState(0)
    for split, count in (("train", 10), ("test", 3)):
        for name in "abc":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                image = random.randint(0, 256, [8 + number % 3, 9, 1]).astype("uint8")
                path = tmp_path / "images" / split / name / f"{number}.png"
                path.write_bytes(tf.io.encode_png(image).numpy())
    return [*tiny, f"--dataset=folder:{tmp_path / 'images'}", "--workdir=new", "--mode=train,evaluate"]


def test_a_folder_is_resized_and_cached(pictures, tmp_path):
    assert "All images must have the same size" in command(*pictures).err
    flags_of_size = [*pictures, "--image_size=8", "--augment=crop_flip,cutout,mixup", "--examples=4"]
    result = command(*flags_of_size)
    assert result.status == 0, result.err
    assert "(4 examples, float32)" in result.out
    kept = (tmp_path / "new" / "flags.cfg").read_text()
    assert "--image_size=8" in kept and "--augment=crop_flip,cutout,mixup" in kept
    again = command(*flags_of_size, "--resume", "--cache=kept")
    assert again.status == 0 and "already trained" in again.out and len(os.listdir("kept")) == 2  # and its lock
    assert "--image_size=9" in command(*flags_of_size, "--resume", "--image_size=9").err
    assert command(f"--workdir={tmp_path / 'new'}", "--mode=evaluate", "--cache=kept").status == 0


def test_a_damaged_image_ends_the_run_with_its_name(pictures, tmp_path):
    path = tmp_path / "images" / "train" / "b" / "7.png"
    path.write_bytes(path.read_bytes()[:-40])
    result = command(*pictures, "--image_size=8", "--batch_size=27")
    assert result.status == 2
    assert result.err == f"keras_mart: Every image must be a complete PNG or JPEG file. Received: {path}\n"


def test_only_the_chosen_test_images_are_decoded(pictures, monkeypatch):
    parse(*pictures, "--image_size=8")
    whole = [np.concatenate(parts) for parts in zip(*build.data("test").as_numpy_iterator(), strict=True)]
    decode, decoded = datasets.encoded.decode, []
    monkeypatch.setattr(datasets.encoded, "decode", lambda *args, **how: decoded.append(args) or decode(*args, **how))
    images, labels = build.test_data(4)
    assert len(decoded) == len(labels) == 4
    chosen = [next(n for n, each in enumerate(whole[0]) if np.array_equal(each, image)) for image in images]
    assert chosen == sorted(chosen) and len(set(chosen)) == 4 and labels.tolist() == whole[1][chosen].tolist()
