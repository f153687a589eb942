"""Tests experiments/study.py, which runs the experiments."""

import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest

from experiments import cells, data, options, study, work

ROOT = pathlib.Path(__file__).parents[1]

# Replaces Python: writes the files that the command line would write. BEHAVIOUR makes calls fail or hang.
STUB = """#!{python} -IS
import json, os, pathlib, signal, sys, time

flags = dict(each[2:].split("=", 1) for each in sys.argv[3:])
directory = pathlib.Path(flags["workdir"])
directory.mkdir(parents=True, exist_ok=True)
mode = flags.get("mode", "weights")
call = " ".join([*directory.parts[-2:], flags.get("attacks", mode)])
with (directory.parents[1] / "calls").open("a") as file:
    print(call, file=file)
results = pathlib.Path(os.environ["RESULTS"])
(directory / "seen").write_text(results.read_text() if results.exists() else "{{}}")
behaviour = json.loads(os.environ.get("BEHAVIOUR", "{{}}")).get(call)
if behaviour in ("hang", "deaf", "finish"):
    def save(*_):
        (directory / "saved").touch()
        sys.exit(143)
    wait = {{signal.SIGTERM}}
    if behaviour == "finish":
        signal.pthread_sigmask(signal.SIG_BLOCK, wait)
    else:
        signal.signal(signal.SIGTERM, save if behaviour == "hang" else signal.SIG_IGN)
    (directory / "history.csv").write_text("epoch,loss\\n1,0.5\\n")
    (directory / "hangs").touch()
    signal.sigwait(wait) if behaviour == "finish" else time.sleep(60)
if behaviour == "fail":
    sys.exit(3)
if mode == "weights":
    (directory / "last.keras").touch()
    pathlib.Path(flags["kept"]).parent.mkdir(exist_ok=True)
    for which in ("best", "last") if "trained" in flags else ():
        pathlib.Path(flags["kept"] + f"-{{which}}-1-of-1.npz").write_text("trained here")
elif mode == "train":
    (directory / "last.keras").touch()
    (directory / "history.csv").write_text("epoch,loss,val_pgd20_accuracy\\n1,0.123456789,\\n2,0.5,0.25\\n")
else:
    (directory / "evaluation.json").write_text(json.dumps({{"best": flags["attacks"]}}))
"""
FGSM, CW = {"attacks": "fgsm"}, {"attacks": "cw"}


@pytest.fixture
def frame(tmp_path, monkeypatch):
    """A function that makes studies in one folder, whose commands run the stub."""
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


def calls(a_study):
    """Returns the stub's calls since the last call of this function: "<study>/<run> train", or the attacks."""
    path = a_study.root / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.replace(" ", "/", 1) for line in lines]


def results(a_study):
    return json.loads(a_study.path.read_text())


def test_finished_stages_are_skipped(frame):
    frame().run([run()])
    assert calls(frame()) == ["study/one train", "study/one fgsm"]
    frame().run([run()])
    assert calls(frame()) == []
    frame().run([run(evaluations={"weak": FGSM, "strong": CW})])
    assert calls(frame()) == ["study/one cw"]
    frame().run([run(evaluations={"weak": CW, "strong": CW})])
    assert calls(frame()) == ["study/one cw"]
    record = results(frame())["one"]
    assert record["evaluations"] == {
        name: {"flags": CW, "best": "cw", "outcomes": {"best": {}, "last": {}}} for name in ("weak", "strong")
    }
    assert record["history"] == [
        {"epoch": 1.0, "loss": 0.123457, "val_pgd20_accuracy": None},
        {"epoch": 2.0, "loss": 0.5, "val_pgd20_accuracy": 0.25},
    ]


def test_results_of_other_flags_are_not_overwritten(frame):
    frame().run([run()])
    before = results(frame())
    with pytest.raises(SystemExit, match=r"other flags: one\. Use another --root"):
        frame().run([run(epochs=3)])
    assert results(frame()) == before


def test_runs_of_another_study_are_evaluated_where_they_were_trained(frame):
    other = study.Run("one", {"epochs": 2, "seed": 7}, {"weak": FGSM}, trained="other")
    with pytest.raises(SystemExit, match=r"experiments\.other` that are missing or have other flags: one"):
        frame().run([other])
    trainer = frame(name="other")
    trainer.run([study.Run("one", other.flags)])
    frame().run([other])
    frame().run([other])
    assert calls(frame()) == ["other/one train", "other/one fgsm"]
    trainer.directory(other).last.unlink()
    frame().run([other])  # as in a fresh clone, which has only the results
    assert results(frame())["one"]["seed"] == 7 and results(frame())["one"]["history"] == []


def test_a_required_run_is_trained_again_if_its_checkpoint_is_gone(frame):
    one = run(evaluations={})
    frame().run([one])
    frame().require([one])
    assert calls(frame()) == ["study/one train"]
    frame().directory(one).last.unlink()
    frame().run([one])
    frame(only="others").require([one])
    assert calls(frame()) == ["study/one train"]


def test_one_experiment_at_a_time_works_in_a_folder(tmp_path):
    lock = options._lock(tmp_path)
    with pytest.raises(SystemExit, match=r"Another experiment, .* is still running in"):
        options._lock(tmp_path)
    lock.close()
    options._lock(tmp_path).close()


def test_only_selects_the_runs_whose_name_contains_it(frame):
    frame(only="tw").run([run("one"), run("two")])
    assert list(results(frame())) == ["two"]


def test_a_failed_run_is_reported_and_resumes_the_next_time(frame, monkeypatch, capsys):
    runs = [run("one"), run("two"), run("three")]
    monkeypatch.setenv("BEHAVIOUR", json.dumps({"study one train": "fail", "study two fgsm": "fail"}))
    with pytest.raises(SystemExit, match=r"study: failed: one, two; see .*<run>\.log"):
        frame().run(runs)
    assert list(results(frame())) == ["two", "three"]
    assert results(frame())["two"]["evaluations"] == {} and results(frame())["three"]["evaluations"]
    calls(frame())
    monkeypatch.delenv("BEHAVIOUR")
    frame().run(runs)
    assert "study: 2 of 3 runs are unfinished" in capsys.readouterr().out
    assert calls(frame()) == ["study/one train", "study/one fgsm", "study/two fgsm"]


def test_results_are_written_after_each_stage(frame):
    frame().run([run(evaluations={"weak": FGSM, "strong": CW})])
    seen = json.loads((frame().root / "study" / "one" / "seen").read_text())["one"]  # by the last stage
    assert len(seen["history"]) == 2 and list(seen["evaluations"]) == ["weak"]


def test_results_are_written_atomically(frame, monkeypatch):
    frame().record(run(), history=[{"epoch": 1}])
    before = results(frame())

    def half(path, text):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("no room")

    monkeypatch.setattr(pathlib.Path, "write_text", half)
    with pytest.raises(OSError, match="no room"):
        frame().record(run(), history=[{"epoch": 2}])
    assert results(frame()) == before


def test_seconds_include_all_attempts(frame, monkeypatch):
    monkeypatch.setenv("BEHAVIOUR", json.dumps({"study one train": "fail"}))
    spent = frame().root / "study" / "one.train.seconds"
    for found in (0, 1000):
        with pytest.raises(SystemExit):
            frame().run([run()])
        assert float(spent.read_text()) >= found
        spent.write_text("1000.0\n")
    monkeypatch.delenv("BEHAVIOUR")
    frame().run([run()])
    assert results(frame())["one"]["seconds"].keys() == {"train", "weak"}
    assert 1000 <= results(frame())["one"]["seconds"]["train"] < 1060
    (spent.parent / "one.weak.seconds").write_text("1000.0\n")
    for least, flags in ((1000, CW), (0, FGSM)):  # a repeated stage counts from 0
        frame().run([run(evaluations={"weak": flags})])
        assert least <= results(frame())["one"]["seconds"]["weak"] < least + 60


def test_sigterm_makes_the_runs_save_and_exit(frame, monkeypatch):
    interrupted = frame()
    names = ("one", "two", "three")
    monkeypatch.setenv("BEHAVIOUR", json.dumps({f"study {name} train": "hang" for name in names}))
    folders = [f"--root={interrupted.root}", f"--results={interrupted.path.parent}"]
    monkeypatch.setattr(sys, "argv", ["study", *folders, "--jobs=2"])
    handler = signal.signal(signal.SIGTERM, _unhandled)
    try:
        parsed, _ = options.parse("study", "", train_examples=0, epochs=1)
        killer = threading.Thread(target=_kill_when_all_hang, args=[interrupted.root / "study", names[:2]])
        killer.start()
        with pytest.raises(SystemExit) as end:
            parsed.run(list(map(run, names)))
        killer.join()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert end.value.code == 143
    assert sorted(path.parent.name for path in interrupted.root.rglob("saved")) == ["one", "two"]
    assert sorted(calls(interrupted)) == ["study/one train", "study/two train"]  # and the third was not started


def _unhandled(*_):
    raise AssertionError("`parse` does not handle SIGTERM")


def _wait_until_all_hang(folder, names):
    end = time.monotonic() + 20
    while not all((folder / name / "hangs").exists() for name in names) and time.monotonic() < end:
        time.sleep(0.02)


def _kill_when_all_hang(folder, names):
    _wait_until_all_hang(folder, names)
    os.kill(os.getpid(), signal.SIGTERM)


def test_saved_weights_are_evaluated_and_replace_a_missing_run(frame):
    def one(**evaluations):
        return study.Run("one", {"epochs": 2}, evaluations, weights=True)

    frame().run([one(weak=FGSM)])
    assert calls(frame()) == ["study/one train", "study/one-float16 weights", "study/one-float16 fgsm"]
    record = results(frame())["one"]
    assert record["weights"] == ["one-best-1-of-1.npz", "one-last-1-of-1.npz"]
    assert record["evaluations"]["weak"]["weights"] == "float16"
    best = frame().weights_prefix(one()).parent / "one-best-1-of-1.npz"
    assert best.read_text() == "trained here"
    best.write_text("trained elsewhere")
    shutil.rmtree(frame().root)
    frame().run([one(weak=FGSM)])
    partial = frame().directory(one()).last  # of a training that was started here but finished on another machine
    partial.parent.mkdir(parents=True)
    partial.touch()
    frame().run([one(weak=FGSM, strong=CW)])
    assert calls(frame()) == ["study/one-float16 weights", "study/one-float16 cw"]
    assert best.read_text() == "trained elsewhere"
    shutil.rmtree(frame().root)
    (frame().weights_prefix(one()).parent / "one-last-1-of-1.npz").unlink()
    frame().run([one(weak=CW, strong=CW)])
    assert calls(frame()) == ["study/one train", "study/one-float16 weights", "study/one-float16 cw"]


def test_at_the_deadline_runs_are_saved_and_unfinished_stages_are_printed(frame, monkeypatch, capsys):
    monkeypatch.setattr(study, "MARGIN", 1)
    behaviour = {"one": "hang", "two": "deaf", "three": "finish"}
    monkeypatch.setenv("BEHAVIOUR", json.dumps({f"study {name} train": each for name, each in behaviour.items()}))
    limited = frame(jobs=3, seconds=60)
    runs = [run(name) for name in (*behaviour, "four")]

    def end():
        _wait_until_all_hang(limited.root / "study", behaviour)
        limited.deadline = time.monotonic() + study.MARGIN

    ender = threading.Thread(target=end)
    ender.start()
    with pytest.raises(SystemExit) as over:
        limited.run(runs)
    ender.join()
    assert over.value.code == 0
    assert (limited.root / "study" / "one" / "saved").exists()
    assert sorted(calls(limited)) == ["study/one train", "study/three train", "study/two train"]  # four did not start
    assert results(limited).keys() == {"three"}
    assert all((limited.root / "study" / f"{name}.train.seconds").exists() for name in ("one", "two"))
    printed = capsys.readouterr().out.splitlines()[-4:]
    half = "unfinished: train, weak (epoch 1 of 2)"
    assert printed == [
        f"study: one: {half}",
        f"study: two: {half}",
        "study: three: unfinished: weak",
        "study: four: unfinished: train, weak",
    ]
    monkeypatch.delenv("BEHAVIOUR")
    frame().run(runs)
    assert calls(limited)[:3] == ["study/one train", "study/one fgsm", "study/two train"]


def test_the_time_must_be_long_enough_to_save(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", f"--root={tmp_path}", f"--seconds={study.MARGIN}"])
    with pytest.raises(SystemExit):
        options.parse("study", "", train_examples=0, epochs=1)
    assert "--seconds must be more than 30" in capsys.readouterr().err


def test_a_run_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(study, "POLL", 0.1)
    data.write(tmp_path / "chosen.npz", chosen=np.arange(5))
    flags = {
        "dataset": data.subset("digits", 40, tmp_path), "network": "small_cnn", "epochs": 1, "steps": 1, "epsilon": 0.1,
        "method": "split", "treatment": "fgsm", "chosen": tmp_path / "chosen.npz",
    }  # fmt: skip
    real = study.Study("study", tmp_path / "runs", tmp_path / "results", jobs=1)
    flags = {name: str(value) for name, value in flags.items()}
    real.run([study.Run("split-0", flags, {"weak": {"attacks": "fgsm", "examples": 7}}, weights=True)])
    record = results(real)["split-0"]
    assert record["flags"] == flags and record["seconds"].keys() == {"train", "weights", "weak"}
    (row,) = record["history"]
    assert row["epoch"] == 1 and np.isfinite(row["loss"]) and 0 <= row["val_adversarial_accuracy"] <= 1
    weak = record["evaluations"]["weak"]
    assert weak["flags"] == {"attacks": "fgsm", "examples": 7} and weak["best"]["threat"]["epsilon"] == 0.1
    assert weak["best"]["examples"] == 7 and weak["last"]["accuracy"].keys() >= {"natural", "fgsm"}
    assert record["weights"] == ["split-0-best-1-of-1.npz", "split-0-last-1-of-1.npz"]
    assert cells.values({0: record}, "fgsm", "best")[0].accuracy == weak["best"]["accuracy"]["fgsm"]
