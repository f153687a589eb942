"""Numbered states of a training run on disk, written atomically and verified by checksums."""

import dataclasses
import errno
import hashlib
import json
import numbers
import os
import pathlib
import re
import shutil

import ml_dtypes
import numpy as np

from keras_mart import files

ARRAYS = "arrays.npz"
FACTS = "facts.json"
CHECKSUMS = "checksums.json"
# Error numbers of a damaged state: a file is missing or unreadable; `None` stands for errors without a number, from
# wrong contents. Other errors, such as a missing permission, are not damage.
DAMAGE = (None, errno.ENOENT, errno.EIO)
# Name of a checkpoint's folder. A new state with the number of an old one is `<number>.1` until the old one is removed.
FOLDER = re.compile(r"(\d{10,})(?:\.(\d+))?")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A saved state.

    Attributes:
        number: its number.
        path: `pathlib.Path` of its folder.
        arrays: list of `np.ndarray`, bit for bit as saved.
        facts: the facts after a round trip through JSON, which turns tuples into lists and keys into text.
        files: dictionary from names to `pathlib.Path`s of the files in its folder. Copy a file before changing it.
    """

    number: int
    path: pathlib.Path
    arrays: list
    facts: object
    files: dict


class Checkpoints:
    """Saves and reads states of a training run, and keeps the newest ones.

    Each state is a folder `<path>/<number, 10 digits>/` with `arrays.npz`, `facts.json`, the added files and
    `checksums.json`. It is renamed to that name after all of it is written to disk, so that a process killed at any
    instruction leaves either the states that were readable before, or the new one as well. Only one process may write
    at a time.

    Args:
        path: str or path of a folder used for nothing else; created by the first save.
        keep: number of states to keep, at least 1. With more than 1, an older state can replace one that was damaged.

    Raises:
        ValueError: `keep` is not positive.
    """

    def __init__(self, path, keep=2):
        if not isinstance(keep, numbers.Integral) or keep < 1:
            raise ValueError(f"`keep` must be a positive integer. Received: keep={keep!r}")
        self.path = pathlib.Path(path)
        self.keep = keep

    def save(self, number, arrays, facts, files=()):
        """Writes a state, then removes older ones beyond `keep`.

        A state with the same number, which a run that resumed from an earlier state reaches again, is removed once the
        new one is written.

        Args:
            number: integer, at least 0, which increases during the run.
            arrays: list of arrays of any shapes, with dtypes of NumPy (no objects) or of ml_dtypes, such as bfloat16.
            facts: anything that JSON can represent, including NaN and infinity; NumPy scalars become Python's.
            files: dictionary from names to paths of files to copy into the state; copies, so that damage to one state
                does not affect the others.

        Returns:
            `pathlib.Path` of the state's folder.

        Raises:
            ValueError: the number, a dtype or a name is invalid.
            TypeError: the facts cannot be represented in JSON.
            OSError: the disk is full or the folder cannot be written; earlier states are unchanged.
        """
        if not isinstance(number, numbers.Integral) or number < 0:
            raise ValueError(f"`number` must be an integer of at least 0. Received: number={number!r}")
        added = dict(files)
        invalid = [name for name in added if name in (ARRAYS, FACTS, CHECKSUMS) or os.path.basename(name) != name]
        if invalid:
            raise ValueError(f"`files` must have plain names, other than the checkpoint's own. Received: {invalid}")
        self._prepare_folder()
        folder = self.path / f"{number:010d}"
        same = [replaced for existing, replaced, _ in self._folders() if existing == number]
        new = folder.with_name(f"{folder.name}.{max(same) + 1}") if same else folder
        _write(new, arrays, facts, added)
        self._remove_others(number, new)
        if new != folder:
            new.rename(folder)
        return folder

    def newest(self):
        """Reads the newest state that is not damaged.

        Returns:
            (`Checkpoint`, or `None` if nothing was saved; list with a sentence about each newer, damaged state).

        Raises:
            ValueError: all states are damaged.
        """
        damaged = {}
        for number, _, folder in self._folders():
            try:
                checkpoint = _read(number, folder)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) not in DAMAGE:
                    raise
                damaged[folder] = error
            else:
                return checkpoint, [
                    f"The checkpoint {path} is damaged ({error}); the one before it is used."
                    for path, error in damaged.items()
                ]
        if damaged:
            listed = ", ".join(f"{path} ({error})" for path, error in damaged.items())
            raise ValueError(f"A run resumes from an undamaged checkpoint. Received: only damaged ones, {listed}")
        return None, []

    def remove_after(self, number):
        """Removes the states with larger numbers, before the run resumes from this one."""
        later = [folder for existing, _, folder in self._folders() if existing > number]
        for folder in later:
            files.remove(folder)
        if later:
            files.sync(self.path)

    def _prepare_folder(self):
        """Creates the folder, or removes unfinished files of killed processes from it."""
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            files.sync(self.path.parent)
        files.remove_unfinished(self.path)

    def _remove_others(self, number, new):
        """Removes the states that a new one with this number replaces, and those beyond `keep`."""
        earlier = sorted({existing for existing, _, _ in self._folders() if existing < number}, reverse=True)
        too_old = earlier[self.keep - 1 :]
        seen = set()
        for existing, _, folder in self._folders():  # two of one number, which a kill may leave: the newer one first
            replaced = (existing == number and folder != new) or (existing < number and existing in seen)
            if existing in too_old or replaced:
                files.remove(folder)
            seen.add(existing)

    def _folders(self):
        """Returns (number, how often it was replaced, path) of each state, the newest first."""
        forms = [(FOLDER.fullmatch(path.name), path) for path in self.path.iterdir()] if self.path.is_dir() else []
        return sorted(((int(form[1]), int(form[2] or 0), path) for form, path in forms if form), reverse=True)


def _write(path, arrays, facts, added):
    """Writes a checkpoint's folder, which must be new."""
    stored, dtypes = {}, {}
    for index, array in enumerate(map(np.asarray, arrays)):
        stored[f"{index:04d}"] = _storable(array)
        if stored[f"{index:04d}"] is not array:
            dtypes[f"{index:04d}"] = array.dtype.name
    state = {"arrays": len(stored), "dtypes": dtypes, "facts": facts}
    text = json.dumps(state, indent=1, default=_python_scalar)  # floats survive the round trip exactly
    with files.atomic_folder(path) as unfinished:
        np.savez(unfinished / ARRAYS, **stored)
        (unfinished / FACTS).write_text(text)
        for name, source in added.items():
            shutil.copyfile(source, unfinished / name)
        sums = {name: _sha256(unfinished / name) for name in (ARRAYS, FACTS, *added)}
        (unfinished / CHECKSUMS).write_bytes(_as_bytes(sums))


def _read(number, folder):
    """Reads the `Checkpoint` in a folder.

    Raises:
        ValueError, OSError: it is damaged.
    """
    sums = _checksums(folder)
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _sha256(folder / name) != expected:
            raise ValueError(f"{name} does not match its checksum")
    state = json.loads((folder / FACTS).read_text())
    with np.load(folder / ARRAYS, allow_pickle=False) as stored:
        arrays = [stored[f"{index:04d}"] for index in range(state["arrays"])]
    for name, dtype in state["dtypes"].items():
        arrays[int(name)] = arrays[int(name)].view(getattr(ml_dtypes, dtype))
    added = {name: folder / name for name in sums if name not in (ARRAYS, FACTS)}
    return Checkpoint(number, folder, arrays, state["facts"], added)


def _checksums(folder):
    path = folder / CHECKSUMS
    if not path.is_file():
        raise ValueError(f"{CHECKSUMS} is missing")
    written = path.read_bytes()
    try:
        sums = json.loads(written)["sha256"]
    except (ValueError, KeyError, TypeError):
        sums = None
    if written != _as_bytes(sums):
        raise ValueError(f"{CHECKSUMS} does not match its own checksum")
    return sums


def _as_bytes(sums):
    """Returns the contents of the file of checksums, which include a checksum of the checksums."""
    own = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    return (json.dumps({"sha256": sums, "own": own}, indent=1) + "\n").encode()


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _storable(array):
    """Returns the array; one of ml_dtypes, which npz files do not keep, as its bits in unsigned integers."""
    if getattr(ml_dtypes, array.dtype.name, None) is array.dtype.type:
        return array.view(f"uint{8 * array.dtype.itemsize}")
    if array.dtype.hasobject or array.dtype.isbuiltin == 2:
        raise ValueError(f"`arrays` must have dtypes of NumPy or ml_dtypes, no objects. Received: {array.dtype}")
    return array


def _python_scalar(value):
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"`facts` must be representable in JSON. Received: {value!r}")
