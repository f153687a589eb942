"""What an evaluation has done so far, in a folder: it goes on from there when its process was killed."""

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

    It holds `arguments.json`, what is evaluated; `done.npz`, how things stood after the last round that is finished;
    and `part-<round>-<place>.npz`, each batch of the round that followed. Every file appears in one step.

    Args:
        path: str or path of the folder, which is made.
        arguments: what the evaluation is of, a dictionary that JSON can say.

    Raises:
        ValueError: another process works here, the folder is of another evaluation, or a file is damaged.
    """

    def __init__(self, path, arguments):
        self.path = pathlib.Path(path)
        self.arguments = json.loads(json.dumps(arguments))

    @contextlib.contextmanager
    def opened(self):
        """Keeps other processes out while the block runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        with files.locked(self.path / LOCK):
            files.remove_unfinished(self.path)
            begun = self.path / ARGUMENTS
            if begun.exists():
                self._check(json.loads(begun.read_text()))
            else:
                with files.atomic_file(begun) as unfinished:
                    unfinished.write_text(json.dumps(self.arguments, indent=1))
            yield self

    def _check(self, begun):
        """Raises ValueError where the evaluation that was begun here is another one."""
        names = [name for name in {**begun, **self.arguments} if begun.get(name) != self.arguments.get(name)]
        if names:
            was, now = ({name: each.get(name) for name in names} for each in (begun, self.arguments))
            raise ValueError(
                f"An evaluation goes on with what it was begun with; remove {self.path} to begin anew. It was begun "
                f"with other {', '.join(names)}: {was}. Received: {now}"
            )

    def done(self):
        """Returns the arrays that `finish` wrote last, `None` where no round is finished."""
        path = self.path / DONE
        return _read(path) if path.exists() else None

    def parts(self, number):
        """Returns the arrays of the batches of a round that are done; removes what other rounds have left."""
        kept = []
        for path in sorted(self.path.glob("part-*.npz")):
            form = PART.fullmatch(path.name)
            if form and int(form[1]) == number:
                kept.append(_read(path))
            else:
                path.unlink()
        return kept

    def add(self, number, place, arrays):
        """Writes a batch of a round."""
        _write(self.path / f"part-{number}-{place}.npz", arrays)

    def finish(self, arrays):
        """Writes how things stand after a round, which `arrays()` gives, and removes the round's batches."""
        _write(self.path / DONE, arrays())
        for path in self.path.glob("part-*.npz"):
            path.unlink()


class Nowhere:
    """Keeps nothing."""

    def opened(self):
        return contextlib.nullcontext(self)

    def done(self):
        return None

    def parts(self, number):
        return ()

    def add(self, number, place, arrays):
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
        raise ValueError(f"{path} is damaged; remove the folder to begin anew. Received: {error}") from error
