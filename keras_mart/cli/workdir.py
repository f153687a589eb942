"""A run directory: what it holds, how it is begun, and how it is read again."""

import csv
import pathlib
import zipfile

import keras

from keras_mart.cli import flags


class RunDirectory:
    """The files of one run of one method.

    flags.cfg, history.csv, tensorboard/, best.keras, last.keras, evaluation.json, export/<version>/.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.flags = self.path / "flags.cfg"
        self.history = self.path / "history.csv"
        self.tensorboard = self.path / "tensorboard"
        self.best = self.path / "best.keras"
        self.last = self.path / "last.keras"
        self.evaluation = self.path / "evaluation.json"
        self.export = self.path / "export"

    def begin(self, resume, text):
        """Makes the directory and keeps the flags in it; an existing run is refused or, with `resume`, gone on with.

        Raises:
            ValueError: the directory cannot be written, is in use, or holds a run with other flags.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"The run directory must be a folder. Received: {self.path}")
        used = self.path.is_dir() and any(self.path.iterdir())
        if used and not resume:
            raise ValueError(f"{self.path} holds files. Go on with its run by --resume, or choose another --workdir.")
        if used:
            self._check_same(text)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.flags.write_text(text)
        except OSError as error:
            raise ValueError(f"The run directory must be writable. Received: {self.path} ({error})") from error

    def _check_same(self, text):
        """A run that goes on may get more epochs and other attacks to evaluate with, but nothing else."""
        if not self.flags.exists():
            raise ValueError(f"{self.path} holds files but no run (flags.cfg is missing). Choose another --workdir.")
        free = ("--epochs=", "--attacks=", "--evaluation_epsilon=", "--strategy=", "--jit_compile=")
        lines = [
            {line for line in one.splitlines() if line and not line.startswith(free)}
            for one in (self.flags.read_text(), text)
        ]
        if lines[0] != lines[1]:
            different = ", ".join(sorted(lines[0] ^ lines[1]))
            raise ValueError(f"--resume needs the flags that {self.path} was begun with. These differ: {different}")

    def load(self, checkpoint):
        """The model of a checkpoint, compiled and with its optimizer.

        Raises:
            ValueError: the file is missing or damaged.
        """
        if not checkpoint.exists():
            raise ValueError(f"There is no checkpoint {checkpoint}. Train first (--mode=train).")
        try:
            with zipfile.ZipFile(checkpoint) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"{damaged} is damaged")
            return keras.saving.load_model(checkpoint)
        except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
            raise ValueError(f"The checkpoint {checkpoint} cannot be read: {error}") from error

    def rows(self):
        """The rows of history.csv, one an epoch, as dictionaries of text."""
        if not self.history.exists():
            return []
        with self.history.open(newline="") as file:
            return list(csv.DictReader(file))

    def keep_rows(self, count):
        """Cuts history.csv to its first `count` epochs: a checkpoint may be older than the last row."""
        rows = self.rows()
        if count >= len(rows):
            return
        with self.history.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows[:count])


def of_method(method):
    """The run directory of a method: --workdir itself, or a folder in it where several methods are compared."""
    root = pathlib.Path(root_path())
    return RunDirectory(root / method if len(flags.FLAGS.method) > 1 else root)


def root_path():
    """--workdir or its default."""
    dataset = flags.FLAGS.dataset.partition(":")[2] or flags.FLAGS.dataset
    return flags.FLAGS.workdir or f"runs/{pathlib.Path(dataset).stem}-{flags.FLAGS.network}"
