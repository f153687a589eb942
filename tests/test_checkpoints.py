"""The states of a run are restored bit for bit, and killed processes and damage leave one to resume from."""

import itertools
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from test_files import dead_process, small_files

import keras_mart
from keras_mart.checkpoints import Checkpoints

# Saves increasing numbers, each twice, and prints them. The package's own __init__ would import TensorFlow.
CHILD = """
import sys, types
import numpy as np
package = types.ModuleType("keras_mart")
package.__path__ = [sys.argv[1]]
sys.modules["keras_mart"] = package
from keras_mart.checkpoints import Checkpoints
states = Checkpoints(sys.argv[2])
newest, _ = states.newest()
number = newest.number + 1 if newest else 0
while True:
    for _ in range(2):
        states.save(number, [np.full(5000, number)], number, {"best.keras": sys.argv[3]})
    print(number, flush=True)
    number += 1
"""


class Killed(BaseException):
    """Raised by a simulated SIGKILL, after which no handler runs any operation on files."""


def names(path):
    return sorted(each.name for each in path.iterdir())


def save(states, number, content=None):
    content = number if content is None else content
    states.save(number, [np.full(3, content)], {"content": content})


def content(states):
    """Returns (number, content) of the newest state, which must be consistent and read without a message."""
    newest, damaged = states.newest()
    assert damaged == [] and set(newest.arrays[0].tolist()) == {newest.facts["content"]}
    return newest.number, newest.facts["content"]


def bits(array):
    return array.dtype, array.shape, array.tobytes()


def test_states_are_restored_bit_for_bit(tmp_path):
    special = np.array([0x7FC1, 0xFF80, 0x8000, 0x0001], "uint16")  # NaN with a payload, -infinity, -0, a subnormal
    arrays = [
        special.view(ml_dtypes.bfloat16),
        special.view("float16"),
        special.view("uint8").view(ml_dtypes.float8_e4m3fn).reshape(2, 4),
        np.array(0.1, ml_dtypes.bfloat16),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))[:, ::2],
        np.zeros((0, 3), "float64"),
        np.array([True, False]),
        np.array("text"),
    ]
    facts = {"rows": [{"loss": 0.1 + 0.2, "smallest": 5e-324}, {"loss": float("inf")}], "seen": None, "step": 2**60}
    (tmp_path / "best.keras").write_text("best")
    states = Checkpoints(tmp_path / "new" / "states")
    path = states.save(np.int64(1200), arrays, facts, {"best.keras": tmp_path / "best.keras"})
    newest, damaged = states.newest()
    assert path == tmp_path / "new" / "states" / "0000001200" and names(path.parent) == ["0000001200"]
    assert (newest.number, newest.path, newest.facts, damaged) == (1200, path, facts, [])
    assert [bits(array) for array in newest.arrays] == [bits(array) for array in arrays]
    assert {name: file.read_text() for name, file in newest.files.items()} == {"best.keras": "best"}

    states.save(1300, [], {"nan": math.nan, "numpy": np.float32(0.1), "negative": -0.0})
    facts = states.newest()[0].facts
    assert math.isnan(facts["nan"]) and facts["numpy"] == float(np.float32(0.1))
    assert math.copysign(1, facts["negative"]) == -1


def test_added_files_are_copies(tmp_path):
    best = tmp_path / "best.keras"
    best.write_text("old")
    states = Checkpoints(tmp_path / "states")
    states.save(1, [], None, {"best.keras": best})
    best.write_bytes(b"new")  # into the same file
    assert states.newest()[0].files["best.keras"].read_text() == "old"


def test_the_last_two_are_kept_and_unfinished_ones_removed(tmp_path):
    states = Checkpoints(tmp_path)
    assert states.newest() == (None, []) == Checkpoints(tmp_path / "missing").newest()
    (tmp_path / f".unfinished-{dead_process()}-0000000007").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for number in (7, 90, 1200):
        save(states, number)
    assert names(tmp_path) == ["0000000090", "0000001200", "notes.txt"]
    save(states, 1000)  # resumed from an earlier state without `remove_after`: the newest save is kept
    assert names(tmp_path) == ["0000000090", "0000001000", "0000001200", "notes.txt"]
    save(Checkpoints(tmp_path, keep=1), 10**10)
    assert names(tmp_path) == ["10000000000", "notes.txt"] and content(states)[0] == 10**10


def test_later_states_are_removed(tmp_path):
    states = Checkpoints(tmp_path, keep=9)
    for number in (1, 2, 3, 4):
        save(states, number)
    states.remove_after(2)
    assert names(tmp_path) == ["0000000001", "0000000002"]


def flip(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
@pytest.mark.parametrize("name", ["arrays.npz", "facts.json", "best.keras", "checksums.json"])
def test_damage_is_noticed_and_named(tmp_path, name, damage):
    (tmp_path / "best.keras").write_text("best")
    states = Checkpoints(tmp_path / "states")
    older, newer = (
        states.save(number, [np.zeros(9)], number, {"best.keras": tmp_path / "best.keras"}) for number in (1, 2)
    )
    (tmp_path / "best.keras").unlink()
    for path in (older, newer):  # each gets its own copy of the shared file
        (path / "copy").write_bytes((path / name).read_bytes())
        (path / "copy").replace(path / name)
    damage(newer / name)
    newest, damaged = states.newest()
    what = rf"{name} (is missing|does not match its (own )?checksum)"
    assert newest.number == newest.facts == 1 and len(damaged) == 1
    assert re.fullmatch(rf"The checkpoint {newer} is damaged \({what}\); the one before it is used\.", damaged[0])
    damage(older / name)
    with pytest.raises(ValueError, match=rf"Received: only damaged ones, {newer} \({what}\), {older} \({what}\)"):
        states.newest()


def test_any_changed_bit_of_the_checksums_is_noticed(tmp_path):
    states = Checkpoints(tmp_path)
    save(states, 1)
    path = tmp_path / "0000000001" / "checksums.json"
    written = path.read_bytes()
    assert list(json.loads(written)["sha256"]) == ["arrays.npz", "facts.json"]
    for place in range(len(written)):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        with pytest.raises(ValueError, match=r"checksums\.json does not match its own checksum"):
            states.newest()


def test_a_full_disk_leaves_the_earlier_states(tmp_path):
    states = Checkpoints(tmp_path)
    for number in (1, 2):
        save(states, number)
    with pytest.raises(OSError, match=f"write {tmp_path}/0000000003; .* is unchanged"), small_files(2000):
        states.save(3, [np.zeros(1000)], None)
    assert names(tmp_path) == ["0000000001", "0000000002"] and content(states) == (2, 2)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ((-1, [], None), r"`number` must be an integer of at least 0. Received: number=-1"),
        ((1.5, [], None), r"`number` must be an integer of at least 0. Received: number=1.5"),
        ((1, [np.array([None])], None), r"`arrays` must have dtypes of NumPy or ml_dtypes, no objects. Received: obj"),
        ((1, [], {1, 2}), r"`facts` must be representable in JSON. Received: \{1, 2\}"),
        ((1, [], None, {"../x": "x"}), r"`files` must have plain names, .* Received: \['../x'\]"),
        ((1, [], None, {"facts.json": "x"}), r"`files` must have plain names, .* Received: \['facts.json'\]"),
        ((1, [], None, {"x": "/missing/x"}), r"No such file or directory: '/missing/x'"),
    ],
)
def test_what_cannot_be_saved(tmp_path, arguments, error):
    with pytest.raises((ValueError, TypeError, OSError), match=error):
        Checkpoints(tmp_path).save(*arguments)
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match=r"`keep` must be a positive integer. Received: keep=0"):
        Checkpoints(tmp_path, keep=0)


def killed_at(monkeypatch, operation):
    """Simulates a process that is killed at its n-th operation on files."""
    counter = itertools.count()

    def stopped(name, function):
        def operate(*arguments, **options):
            if next(counter) >= operation:
                if name == "savez" and isinstance(arguments[0], pathlib.Path):
                    arguments[0].write_bytes(b"half")
                raise Killed
            return None if name == "fsync" else function(*arguments, **options)

        return operate

    for name in ("mkdir", "replace", "rename", "fsync", "unlink", "rmdir", "scandir"):
        monkeypatch.setattr(os, name, stopped(name, getattr(os, name)))
    monkeypatch.setattr(np, "savez", stopped("savez", np.savez))


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("number", [3, 2])
def test_a_save_that_is_killed_anywhere_loses_nothing(tmp_path, monkeypatch, number, keep):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for operation in itertools.count():
        states = Checkpoints(tmp_path / str(operation), keep)
        for earlier in (0, 1, 2):
            save(states, earlier)
        before, new = content(states), (number, 100)
        with monkeypatch.context() as patches:
            killed_at(patches, operation)
            try:
                save(states, *new)
                break
            except Killed:
                pass
        assert content(states) in (before, new)
        assert all(len(names(path)) == 3 for path in states.path.glob("0*"))  # no state is visible in part
        with monkeypatch.context() as patches:  # the next process is killed in a folder left by this one
            killed_at(patches, operation)
            try:
                save(states, number, 200)
            except Killed:
                pass
        assert content(states) in (before, new, (number, 200))
        save(states, number, 300)
        assert content(states) == (number, 300)
        assert names(states.path) == [f"{kept:010d}" for kept in range(number + 1 - keep, number + 1)]
    assert operation > 10 and content(states) == new


def test_a_process_that_is_killed_while_it_saves(tmp_path):
    states, dice, said = Checkpoints(tmp_path / "states"), random.Random(0), -1
    (tmp_path / "best.keras").write_bytes(bytes(10000))
    command = [sys.executable, "-c", CHILD, os.path.dirname(keras_mart.__file__), states.path, tmp_path / "best.keras"]
    for _ in range(5):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                first = process.stdout.readline()
                time.sleep(dice.uniform(0, 0.05))
            finally:
                process.kill()
            said = int((first + process.stdout.read()).split()[-1])
        newest, damaged = states.newest()
        assert damaged == [] and said <= newest.number <= said + 1
        assert newest.facts == newest.number and np.array_equal(newest.arrays[0], np.full(5000, newest.number))
        assert newest.files["best.keras"].read_bytes() == bytes(10000)
    states.save(said + 9, [], None)
    assert len(names(states.path)) == 2
