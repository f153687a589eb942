"""Interrupted runs: a run that is killed and resumed ends bit for bit like an uninterrupted one; signals."""

import functools
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import conv_network
from test_cli import command, fresh_flags  # noqa: F401

from keras_mart.checkpoints import Checkpoints
from keras_mart.cli import saving, workdir

EXAMPLES = 56  # 51 for training: 3 steps of 16 per epoch, and 3 examples left out
CASES = {
    # Dropout and BatchNormalization, crops, shuffling, random starts, momentum, weight averaging and perturbation; 8
    # extra examples per batch besides the 16, from 20 labelled by a network; accumulation; a rate that changes at every
    # step.
    "mart": [
        "--network={data}/network.keras", "--augment=crop", "--weight_average=0.9", "--awp_gamma=0.01",
        "--awp_warmup=1", "--batch_size=24", "--extra_fraction=1/3", "--extra=npz:{data}/extra.npz",
        "--labeller={data}/labeller.keras", "--accumulate=5", "--schedule=cosine", "--warmup_epochs=5/3", "--nesterov",
        "--weight_decay=0.01", "--nodecay_all",
    ],
    # A network of the zoo, margins, and an optimizer with more state.
    "mma": [
        "--network=small_cnn", "--max_epsilon=0.2", "--bisection_steps=2", "--optimizer=adam", "--decay_epochs=3",
    ],
    "standard": ["--network={data}/network.keras"],
}  # fmt: skip


class Killed(BaseException):
    """Simulates SIGKILL, except that unfinished files are removed (tests/test_checkpoints.py sends a real one)."""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    random = np.random.RandomState(0)
    folder = tmp_path_factory.mktemp("data")
    path = folder / "tiny.npz"
    images = random.randint(0, 256, [EXAMPLES, 8, 8]).astype("uint8")
    labels = np.arange(EXAMPLES) % 3
    np.savez(path, x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3])
    np.savez(folder / "extra.npz", image=random.randint(0, 256, [20, 8, 8, 1]).astype("uint8"))
    for name in ("labeller", "network"):
        conv_network((8, 8, 1)).save(folder / f"{name}.keras")
    return [
        f"--dataset=npz:{path}", "--batch_size=16", "--steps=1", "--learning_rate=0.01", "--epochs=3",
        "--mode=train", "--resume",
    ]  # fmt: skip


def arguments(flags, case, path, *more):
    data = pathlib.Path(flags[0].partition(":")[2]).parent
    own = (each.format(data=data) for each in CASES[case])
    return [*flags, f"--method={case}", *own, f"--workdir={path}", *more]


def run(flags, case, path, *more):
    return command(*arguments(flags, case, path, *more))


def contents(path):
    """Returns the final state and files of a run, for comparison."""
    state, damaged = Checkpoints(path / "checkpoints").newest()
    assert not damaged
    best, last = (keras.saving.load_model(path / name) for name in ("best.keras", "last.keras"))
    values = [*state.arrays, *best.get_weights(), *last.get_weights()]
    return (
        [value.tobytes() for value in values], state.number, state.facts, (path / "history.csv").read_text(),
        sorted(file.name for file in path.iterdir()),
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory):
    """Returns a function from a method to the `contents` of an uninterrupted run of it."""

    @functools.cache
    def of(case):
        path = tmp_path_factory.mktemp(case) / "run"
        assert run(flags, case, path).status == 0
        return contents(path)

    return of


def kill(monkeypatch, owner, name, call, before=True):
    """Kills the program before or after a function's call number `call`."""
    work, calls = getattr(owner, name), []

    def killing(*args, **kwargs):
        calls.append(name)
        if before and len(calls) == call:
            raise Killed
        result = work(*args, **kwargs)
        if not before and len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killing)


# Where the run is killed (owner, function, number of the call, before or after it), and --save_every.
KILLS = {
    "in the first epoch, nothing saved": (saving.Saver, "after_steps", 2, True, "1epoch"),
    "in the middle of an epoch": (saving.Saver, "after_steps", 6, True, "2steps"),
    "after the last step, in the validation": (saving.Saver, "on_test_end", 2, True, "3steps"),
    "before the first state, with a best checkpoint": (saving.Saver, "after_steps", 5, True, "100epochs"),
    "in the first record": (workdir.RunDirectory, "_write_rows", 2, True, "1epoch"),
    "before last and best are written": (workdir.RunDirectory, "record", 2, True, "1epoch"),
    "between last, best and history": (workdir.RunDirectory, "_write_rows", 3, True, "1epoch"),
    "before the state is saved": (workdir.RunDirectory, "save", 2, True, "1epoch"),
    "after the state is saved": (workdir.RunDirectory, "save", 2, False, "1epoch"),
    "while a state is written": (np, "savez", 3, False, "2steps"),
}


# The cases that are not slow.
DAILY = ("in the middle of an epoch", "after the last step, in the validation")
SLOW = [pytest.param(where, marks=[] if where in DAILY else pytest.mark.slow) for where in KILLS]


@pytest.mark.parametrize("where", SLOW)
def test_a_killed_run_ends_like_an_uninterrupted_one(where, flags, uninterrupted, tmp_path, monkeypatch):
    owner, name, call, before, every = KILLS[where]
    case = "mart" if list(KILLS).index(where) % 2 else "mma"
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill(patch, owner, name, call, before)
        with pytest.raises(Killed):
            run(flags, case, path, f"--save_every={every}")
    result = run(flags, case, path, f"--save_every={every}")
    assert result.status == 0, result.err
    assert contents(path) == uninterrupted(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arrays.npz", "best.keras"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(name, flags, uninterrupted, tmp_path):
    path = tmp_path / "run"
    run(flags, "mma", path, "--epochs=2")
    newest = max((path / "checkpoints").iterdir())
    for damaged in {newest / name, path / "best.keras"}:
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
    result = run(flags, "mma", path)
    assert f"{newest} is damaged ({name} does not match its checksum); the one before it is used." in result.out
    assert contents(path) == uninterrupted("mma")


def process(flags, case, path, *more):
    """Starts the program as a process."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    root = pathlib.Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-m", "keras_mart.main", *arguments(flags, case, path, *more)], cwd=root, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_after_the_step_with_the_state_saved(number, status, flags, tmp_path):
    path = tmp_path / "run"
    child = process(flags, "standard", path, "--epochs=100000", "--save_every=100000epochs")
    for line in child.stdout:
        if line.startswith("Epoch 3/"):
            break
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == status, out
    assert "Resume it with the same flags and --resume." in out
    state, _ = Checkpoints(path / "checkpoints").newest()
    progress = state.facts["progress"]
    assert progress["epoch"] >= 2 and state.number == 3 * progress["epoch"] + progress["step"]
    assert len(progress["rows"]) == progress["epoch"]


@pytest.mark.parametrize(
    ("every", "expected"), [("2", [2, 4, 6, 8, 9]), pytest.param("2epochs", [6, 9], marks=pytest.mark.slow)]
)
def test_save_every(every, expected, flags, tmp_path, monkeypatch):
    numbers = []
    monkeypatch.setattr(workdir.RunDirectory, "save", lambda self, number, *_: numbers.append(number))
    run(flags, "standard", tmp_path / "run", f"--save_every={every}")
    assert numbers == expected


def flat(path):
    """Returns the state of a run bit for bit; its model files can be read only under the workers' strategy."""
    state, _ = Checkpoints(path / "checkpoints").newest()
    return [array.tobytes() for array in state.arrays], state.facts, (path / "history.csv").read_text()


@pytest.mark.slow
def test_two_workers_resume_bit_for_bit(flags, tmp_path):
    path, expected = tmp_path / "run", tmp_path / "expected"
    assert process(flags, "mma", expected, "--workers=2").wait(timeout=300) == 0
    child = process(flags, "mma", path, "--workers=2", "--save_every=2")
    next(line for line in child.stdout if "Epoch 2/" in line)
    child.kill()
    child.communicate()
    assert process(flags, "mma", path, "--workers=2", "--save_every=2").wait(timeout=300) == 0
    assert flat(path) == flat(expected)


@pytest.mark.slow
def test_a_signal_to_one_of_two_workers_ends_both_with_the_state_saved(flags, tmp_path):
    path = tmp_path / "run"
    child = process(flags, "mma", path, "--workers=2", "--epochs=100000", "--save_every=100000epochs")
    next(line for line in child.stdout if "Epoch 2/" in line)
    workers = pathlib.Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 143, out
    assert f"[0] {path}: saved after step" in out
    assert Checkpoints(path / "checkpoints").newest()[0] is not None
