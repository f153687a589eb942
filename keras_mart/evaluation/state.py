"""Saves the progress of an evaluation to a folder, so that an interrupted evaluation can be resumed."""

import contextlib
import json
import pathlib
import re
import zipfile

import numpy as np

from keras_mart import files

ARGUMENTS, DONE, LOCK = "arguments.json", "done.npz", "lock"
PART = re.compile(r"part-(\d+)-\d+\.npz")


class State:
    """The folder of one evaluation.

    It contains `arguments.json`, the description of the evaluation; `done.npz`, the results after the last finished
    round; and `part-<round>-<row>.npz`, the finished batches of the current round. Every file is written atomically.

    Args:
        path: str or path of the folder, created if missing.
        arguments: description of the evaluation, a dictionary that JSON can represent.

    Raises:
        ValueError: if another process uses the folder, it belongs to another evaluation, or a file is damaged.
    """

    def __init__(self, path, arguments):
        self.path = pathlib.Path(path)
        self.arguments = json.loads(json.dumps(arguments))

    @contextlib.contextmanager
    def opened(self):
        """Locks the folder against other processes while the block runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        with files.locked(self.path / LOCK):
            files.remove_unfinished(self.path)
            stored = self.path / ARGUMENTS
            if stored.exists():
                self._check(json.loads(stored.read_text()))
            else:
                with files.atomic_file(stored) as unfinished:
                    unfinished.write_text(json.dumps(self.arguments, indent=1))
            yield self

    def _check(self, stored):
        """Raises ValueError if the folder belongs to another evaluation."""
        names = [name for name in {**stored, **self.arguments} if stored.get(name) != self.arguments.get(name)]
        if names:
            was, now = ({name: each.get(name) for name in names} for each in (stored, self.arguments))
            raise ValueError(
                f"An evaluation must be resumed with the same arguments; remove {self.path} to start again. It was "
                f"started with other {', '.join(names)}: {was}. Received: {now}"
            )

    def done(self):
        """Returns the arrays that `finish` wrote last, `None` if no round is finished."""
        path = self.path / DONE
        return _read(path) if path.exists() else None

    def parts(self, number):
        """Returns the arrays of a round's finished batches; removes those of other rounds."""
        parts = []
        for path in sorted(self.path.glob("part-*.npz")):
            form = PART.fullmatch(path.name)
            if form and int(form[1]) == number:
                parts.append(_read(path))
            else:
                path.unlink()
        return parts

    def add(self, number, row, arrays):
        """Writes a finished batch of a round; `row` is its first example."""
        _write(self.path / f"part-{number}-{row}.npz", arrays)

    def finish(self, arrays):
        """Writes the results after a round, which `arrays()` returns, and removes the round's batches."""
        _write(self.path / DONE, arrays())
        for path in self.path.glob("part-*.npz"):
            path.unlink()


class NoState:
    """Stands in for `State` where nothing is saved."""

    def opened(self):
        return contextlib.nullcontext(self)

    def done(self):
        return None

    def parts(self, number):
        return ()

    def add(self, number, row, arrays):
        pass

    def finish(self, arrays):
        pass


def _write(path, arrays):
    with files.atomic_file(path) as unfinished:
        np.savez(unfinished, **arrays)


def _read(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged; remove the folder to start again. Received: {error}") from error
