"""The states of a training run on disk: numbered, whole, and known to be what was saved."""

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
# The errors of a damaged state: a file is gone or unreadable, or, without a number, is not what was written. Whatever
# else, such as a missing permission, is no damage.
DAMAGE = (None, errno.ENOENT, errno.EIO)
# A checkpoint's folder. One of a number that is there already is `<number>.1` until it has the number to itself.
FOLDER = re.compile(r"(\d{10,})(?:\.(\d+))?")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A state as it was saved.

    Attributes:
        number: its number.
        path: `pathlib.Path` of its folder.
        arrays: list of `np.ndarray`, bit by bit those that were saved.
        facts: what JSON makes of the facts: tuples have become lists, and keys text.
        files: name to `pathlib.Path` of each file that was put in. They are the checkpoint's own: copy what changes.
    """

    number: int
    path: pathlib.Path
    arrays: list
    facts: object
    files: dict


class Checkpoints:
    """The newest states of a training run.

    Each is a folder `<path>/<number, 10 digits>/` with `arrays.npz`, `facts.json`, the files that were put in, and
    `checksums.json`. It appears in one step and is on the disk by then. A process that is killed, at whatever
    instruction, leaves all that could be read before, or the new state. One process at a time writes.

    Args:
        path: str or path of a folder for nothing else; made by the first save.
        keep: number of states to keep, at least 1. With more than 1, a state that the disk has damaged since is
            no loss.

    Raises:
        ValueError: `keep` is not positive.
    """

    def __init__(self, path, keep=2):
        if not isinstance(keep, numbers.Integral) or keep < 1:
            raise ValueError(f"`keep` must be a positive integer. Received: keep={keep!r}")
        self.path = pathlib.Path(path)
        self.keep = keep

    def save(self, number, arrays, facts, files=()):
        """Writes a state, then removes those before it that are too many.

        A state of the same number is replaced: a run that went back arrives there again. It goes when the new one is
        in its place.

        Args:
            number: integer, at least 0, that grows as the run goes on.
            arrays: list of arrays of any shapes, with dtypes of NumPy (no objects) or of ml_dtypes, such as bfloat16.
            facts: what JSON can say, also NaN and infinity; NumPy's scalars become Python's.
            files: name to path of files to put in, as copies: what is damaged in one state is whole in another.

        Returns:
            `pathlib.Path` of its folder.

        Raises:
            ValueError: a number, dtype or name that cannot be kept.
            TypeError: facts that JSON cannot say.
            OSError: no room, or the folder cannot be written; the states that were there are untouched.
        """
        if not isinstance(number, numbers.Integral) or number < 0:
            raise ValueError(f"`number` must be an integer of at least 0. Received: number={number!r}")
        put_in = dict(files)
        wrong = [name for name in put_in if name in (ARRAYS, FACTS, CHECKSUMS) or os.path.basename(name) != name]
        if wrong:
            raise ValueError(f"`files` must have plain names, other than the checkpoint's own. Received: {wrong}")
        self._tidy()
        folder = self.path / f"{number:010d}"
        same = [again for found, again, _ in self._folders() if found == number]
        new = folder.with_name(f"{folder.name}.{max(same) + 1}") if same else folder
        _write(new, arrays, facts, put_in)
        self._remove_others(number, new)
        if new != folder:
            new.rename(folder)
        return folder

    def newest(self):
        """The newest state that is whole.

        Returns:
            (`Checkpoint` or `None` where nothing was saved, list of a sentence on each newer one that is damaged).

        Raises:
            ValueError: there are states and all are damaged.
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
            raise ValueError(f"A run goes on from a checkpoint that is whole. Received: damaged ones only, {listed}")
        return None, []

    def forget_after(self, number):
        """Removes the states of larger numbers: the run goes on from this one, and they are not of its future."""
        later = [folder for found, _, folder in self._folders() if found > number]
        for folder in later:
            files.remove(folder)
        if later:
            files.sync(self.path)

    def _tidy(self):
        """Makes the folder, or removes from it what killed saves have left."""
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            files.sync(self.path.parent)
        files.remove_unfinished(self.path)

    def _remove_others(self, number, new):
        """Removes what a new state of that number replaces, and what is too old."""
        earlier = sorted({found for found, _, _ in self._folders() if found < number}, reverse=True)
        too_old = earlier[self.keep - 1 :]
        seen = set()
        for found, _, folder in self._folders():  # of two with one number, which a kill leaves, the newer comes first
            if found in too_old or (found == number and folder != new) or (found < number and found in seen):
                files.remove(folder)
            seen.add(found)

    def _folders(self):
        """(number, how often it was replaced, path) of each state, the newest first."""
        forms = [(FOLDER.fullmatch(path.name), path) for path in self.path.iterdir()] if self.path.is_dir() else []
        return sorted(((int(form[1]), int(form[2] or 0), path) for form, path in forms if form), reverse=True)


def _write(path, arrays, facts, put_in):
    """Writes a checkpoint's folder, which must be new."""
    stored, dtypes = {}, {}
    for index, array in enumerate(map(np.asarray, arrays)):
        stored[f"{index:04d}"] = _storable(array)
        if stored[f"{index:04d}"] is not array:
            dtypes[f"{index:04d}"] = array.dtype.name
    state = {"arrays": len(stored), "dtypes": dtypes, "facts": facts}
    text = json.dumps(state, indent=1, default=_python_scalar)  # Python's floats come back to the last bit
    with files.atomic_folder(path) as unfinished:
        np.savez(unfinished / ARRAYS, **stored)
        (unfinished / FACTS).write_text(text)
        for name, source in put_in.items():
            shutil.copyfile(source, unfinished / name)
        sums = {name: _sha256(unfinished / name) for name in (ARRAYS, FACTS, *put_in)}
        (unfinished / CHECKSUMS).write_bytes(_as_bytes(sums))


def _read(number, folder):
    """The checkpoint in a folder.

    Raises:
        ValueError, OSError: it is not as it was written.
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
    put_in = {name: folder / name for name in sums if name not in (ARRAYS, FACTS)}
    return Checkpoint(number, folder, arrays, state["facts"], put_in)


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
    """The checksums as a file that holds its own: only the file that was written is made again from what it says."""
    own = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    return (json.dumps({"sha256": sums, "own": own}, indent=1) + "\n").encode()


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _storable(array):
    """The array, or its bits as unsigned integers where it has a dtype of ml_dtypes, which npz files do not keep."""
    if getattr(ml_dtypes, array.dtype.name, None) is array.dtype.type:
        return array.view(f"uint{8 * array.dtype.itemsize}")
    if array.dtype.hasobject or array.dtype.isbuiltin == 2:
        raise ValueError(f"`arrays` must have dtypes of NumPy or ml_dtypes, no objects. Received: {array.dtype}")
    return array


def _python_scalar(value):
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"`facts` must be what JSON can say. Received: {value!r}")
