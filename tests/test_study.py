"""experiments/study.py: the frame that runs a study."""

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

# Stands in the place of Python: it leaves what the command line would leave. BEHAVIOUR says where it does otherwise.
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


def _wait_until_all_hang(folder, names):
    end = time.monotonic() + 20
    while not all((folder / name / "hangs").exists() for name in names) and time.monotonic() < end:
        time.sleep(0.02)


def _kill_when_all_hang(folder, names):
    _wait_until_all_hang(folder, names)
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_weights_that_are_kept_are_judged_and_stand_in_for_a_run_that_is_gone(frame):
    def one(**evaluations):
        return study.Run("one", {"epochs": 2}, evaluations, weights=True)

    frame().do([one(weak=FGSM)])
    assert calls(frame()) == ["study/one train", "study/one-float16 weights", "study/one-float16 fgsm"]
    record = kept(frame())["one"]
    assert record["weights"] == ["one-best-1-of-1.npz", "one-last-1-of-1.npz"]
    assert record["evaluations"]["weak"]["weights"] == "float16"
    best = frame().kept(one()).parent / "one-best-1-of-1.npz"
    assert best.read_text() == "trained here"
    best.write_text("trained elsewhere")
    shutil.rmtree(frame().root)
    frame().do([one(weak=FGSM)])
    begun = frame().directory(one()).last  # of a training that was begun here, while another machine ended it
    begun.parent.mkdir(parents=True)
    begun.touch()
    frame().do([one(weak=FGSM, strong=CW)])
    assert calls(frame()) == ["study/one-float16 weights", "study/one-float16 cw"]
    assert best.read_text() == "trained elsewhere"
    shutil.rmtree(frame().root)
    (frame().kept(one()).parent / "one-last-1-of-1.npz").unlink()
    frame().do([one(weak=CW, strong=CW)])
    assert calls(frame()) == ["study/one train", "study/one-float16 weights", "study/one-float16 cw"]


def test_when_the_time_is_over_all_is_saved_and_what_is_left_is_told(frame, monkeypatch, capsys):
    monkeypatch.setattr(study, "MARGIN", 1)
    behaviour = {"one": "hang", "two": "deaf", "three": "finish"}
    monkeypatch.setenv("BEHAVIOUR", json.dumps({f"study {name} train": each for name, each in behaviour.items()}))
    made = frame(jobs=3, seconds=60)
    runs = [run(name) for name in (*behaviour, "four")]

    def end():
        _wait_until_all_hang(made.root / "study", behaviour)
        made.end = time.monotonic() + study.MARGIN

    ender = threading.Thread(target=end)
    ender.start()
    with pytest.raises(SystemExit) as over:
        made.do(runs)
    ender.join()
    assert over.value.code == 0
    assert (made.root / "study" / "one" / "saved").exists()
    assert sorted(calls(made)) == ["study/one train", "study/three train", "study/two train"]  # and no more was begun
    assert kept(made).keys() == {"three"}
    assert all((made.root / "study" / f"{name}.train.seconds").exists() for name in ("one", "two"))
    told = capsys.readouterr().out.splitlines()[-4:]
    half = "left: train, weak (epoch 1 of 2)"
    assert told == [
        f"study: one: {half}",
        f"study: two: {half}",
        "study: three: left: weak",
        "study: four: left: train, weak",
    ]
    monkeypatch.delenv("BEHAVIOUR")
    frame().do(runs)
    assert calls(made)[:3] == ["study/one train", "study/one fgsm", "study/two train"]


def test_the_time_must_be_long_enough_to_save(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", f"--root={tmp_path}", f"--seconds={study.MARGIN}"])
    with pytest.raises(SystemExit):
        options.begin("study", "", train_examples=0, epochs=1)
    assert "--seconds must be more than 30" in capsys.readouterr().err


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
    made.do([study.Run("split-0", flags, {"weak": {"attacks": "fgsm", "examples": 7}}, weights=True)])
    record = kept(made)["split-0"]
    assert record["flags"] == flags and record["seconds"].keys() == {"train", "weights", "weak"}
    (row,) = record["history"]
    assert row["epoch"] == 1 and np.isfinite(row["loss"]) and 0 <= row["val_adversarial_accuracy"] <= 1
    judged = record["evaluations"]["weak"]
    assert judged["flags"] == {"attacks": "fgsm", "examples": 7} and judged["best"]["threat"]["epsilon"] == 0.1
    assert judged["best"]["examples"] == 7 and judged["last"]["accuracy"].keys() >= {"natural", "fgsm"}
    assert record["weights"] == ["split-0-best-1-of-1.npz", "split-0-last-1-of-1.npz"]
    assert cells.values({0: record}, "fgsm", "best")[0].accuracy == judged["best"]["accuracy"]["fgsm"]
