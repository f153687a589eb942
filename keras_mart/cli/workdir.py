"""Run directories: creates, checks, writes and restores them."""

import csv
import pathlib
import shutil
import zipfile

import keras

from keras_mart import files
from keras_mart.checkpoints import Checkpoints
from keras_mart.cli import flags, rules
from keras_mart.cli.parsers import APPLICATIONS
from keras_mart.evaluation.run import Run

# Flags that may change when a run is resumed: the number of epochs (unless the learning rate depends on it), and those
# of the evaluation and the machine; but not --evaluation_epsilon, at which the best checkpoint is chosen.
CHANGEABLE = tuple(
    f"--{name}="
    for name in (
        "epochs", "strategy", "jit_compile", "steps_per_execution", "accumulate", "data_dir", "cache", "save_every",
        "on_nan", *rules.EVALUATION_FLAGS,
    )
    if name != "evaluation_epsilon"
)  # fmt: skip


class ModelDirectory(Run):
    """The directory in which --model is evaluated and reported, as the best and only checkpoint."""

    checkpoint_names = ("best",)

    def begin(self, text):
        """Creates the directory and writes the flags to it.

        Raises:
            ValueError: if it contains a run or another model's evaluation, or cannot be written.
        """
        own = f"--model={flags.FLAGS.model}"
        if self.best.exists() or (self.flags.exists() and own not in self.flags.read_text().splitlines()):
            raise ValueError(f"There is another run in {self.path}. Choose another --workdir. Received: {own}")
        _begin(self, text)


class RunDirectory(Run):
    """A run directory to create, resume and write to; `checkpoints` are the saved states to resume from."""

    checkpoint_names = ("best", "last")

    def __init__(self, path):
        super().__init__(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints")

    def check(self, resume, text):
        """Raises ValueError if no run with these flags can be started here or, with `resume`, resumed."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"The run directory must be a folder. Received: {self.path}")
        files.remove_unfinished(self.path)
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not resume:
            raise ValueError(f"{self.path} contains files. Resume its run with --resume, or choose another --workdir.")
        if not self.flags.exists():
            raise ValueError(f"{self.path} contains files but no run (flags.cfg is missing). Choose another --workdir.")
        if self.best.exists() and not self.checkpoints.path.exists():
            raise ValueError(
                f"{self.checkpoints.path} is missing: the run cannot be resumed. Choose another --workdir."
            )
        if len(self.rows()) > flags.FLAGS.epochs:
            raise ValueError(
                f"{self.path} has already trained {len(self.rows())} epochs. Received: --epochs={flags.FLAGS.epochs}"
            )
        stored, given = (_fixed_lines(each) for each in (self.flags.read_text(), text))
        if stored != given:
            started, received = (" ".join(sorted(lines)) or "nothing" for lines in (stored - given, given - stored))
            why = (
                f" The rate of --schedule={flags.FLAGS.schedule} depends on --epochs."
                if _epochs(stored ^ given)
                else ""
            )
            raise ValueError(
                f"--resume needs the flags that {self.path} was started with (--flagfile={self.flags} sets them)."
                f"{why} It was started with {started}. Received instead: {received}"
            )

    def begin(self, text):
        """Creates the directory and writes the flags to it.

        Raises:
            ValueError: if the directory cannot be written.
        """
        _begin(self, text)

    def load(self, checkpoint):
        """Loads the model of a checkpoint, compiled and with its optimizer.

        Raises:
            ValueError: if the file is missing or damaged.
        """
        if not checkpoint.exists():
            raise ValueError(f"There is no checkpoint {checkpoint}. Train first (--mode=train).")
        try:
            with zipfile.ZipFile(checkpoint) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"{damaged} is damaged")
            return keras.saving.load_model(checkpoint)
        except (zipfile.BadZipFile, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The checkpoint {checkpoint} cannot be read: {error}") from error

    def record(self, model, rows, is_best):
        """Writes history.csv, last.keras and, if it is the best so far, best.keras; removes outdated results."""
        self.remove_results()
        with files.atomic_file(self.last) as unfinished:
            model.save(unfinished)
        if is_best:
            with files.atomic_file(self.best) as unfinished:
                shutil.copyfile(self.last, unfinished)
        self._write_rows(rows)

    def remove_results(self):
        """Removes the evaluation, diagnosis and gallery of the checkpoints."""
        for each in (self.evaluation, *map(self.predictions, ("best", "last")), self.diagnosis, self.gallery):
            each.unlink(missing_ok=True)
        files.remove(self.evaluating)

    def save(self, number, arrays, facts):
        """Saves the state of the run together with its current best checkpoint."""
        self.checkpoints.save(number, arrays, facts, {self.best.name: self.best} if self.best.exists() else {})

    def go_back(self, checkpoint):
        """Resets the directory to its contents when a state was saved; `None` stands for the start of the run."""
        self.checkpoints.path.mkdir(exist_ok=True)  # from now on, a run without this folder has lost it
        self.checkpoints.remove_after(-1 if checkpoint is None else checkpoint.number)
        rows = [] if checkpoint is None else checkpoint.facts["progress"]["rows"]
        if len(self.rows()) > len(rows):
            self.remove_results()
        best = None if checkpoint is None else checkpoint.files.get(self.best.name)
        if best is None:
            self.best.unlink(missing_ok=True)
        else:
            with files.atomic_file(self.best) as unfinished:
                shutil.copyfile(best, unfinished)
        self._write_rows(rows)

    def _write_rows(self, rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        with files.atomic_file(self.history) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def _begin(run, text):
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(run.flags) as unfinished:
            unfinished.write_text(text)
    except OSError as error:
        raise ValueError(f"The run directory must be writable. Received: {run.path} ({error})") from error


def _fixed_lines(text):
    """Returns the lines of a flagfile that must not change when a run is resumed."""
    lines = {line for line in text.splitlines() if line and not line.startswith(CHANGEABLE)}
    return lines | (_epochs(text.splitlines()) if flags.FLAGS.schedule in rules.WHOLE_RUN_SCHEDULES else set())


def _epochs(lines):
    return {line for line in lines if line.startswith("--epochs=")}


def of_method(method):
    """Returns the run directory of a method: --workdir, or a folder in it if several methods are compared."""
    root = root_path()
    several = len(flags.FLAGS.method) > 1 or (root / method / "flags.cfg").exists()
    return RunDirectory(root / method if several else root)


def root_path():
    """Returns --workdir or its default."""
    kind, _, location = flags.FLAGS.dataset.partition(":")
    data = pathlib.Path(location).expanduser().resolve().stem if kind in ("npz", "folder") else location or kind
    model = flags.FLAGS.model
    network = flags.FLAGS.network.removeprefix(APPLICATIONS) if model is None else model
    network = pathlib.Path(network).expanduser().resolve().stem
    return pathlib.Path(flags.FLAGS.workdir or f"runs/{data.replace('/', '-')}-{network}").expanduser()
