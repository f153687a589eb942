"""The files of a run directory, and how to read them."""

import csv
import json
import pathlib


class Run:
    """The files of one run of one method.

    Training writes flags.cfg, history.csv, tensorboard/, best.keras, last.keras and checkpoints/; export writes
    export/<version>/. Evaluation writes evaluation.json, best.npz and last.npz (each checkpoint's predictions), and
    evaluating/ while it is unfinished; the report writes diagnosis.json and gallery.npz. These results belong to the
    checkpoints beside them: resumed training removes them.

    Args:
        path: the directory.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.flags = self.path / "flags.cfg"
        self.history = self.path / "history.csv"
        self.tensorboard = self.path / "tensorboard"
        self.best = self.path / "best.keras"
        self.last = self.path / "last.keras"
        self.evaluation = self.path / "evaluation.json"
        self.evaluating = self.path / "evaluating"
        self.diagnosis = self.path / "diagnosis.json"
        self.gallery = self.path / "gallery.npz"
        self.export = self.path / "export"

    def predictions(self, which):
        """Returns the path of the predictions of the "best" or "last" checkpoint, written by `Table.save`."""
        return self.path / f"{which}.npz"

    def rows(self):
        """Returns the rows of history.csv, one per epoch, as dictionaries of strings."""
        if not self.history.exists():
            return []
        with self.history.open(newline="") as file:
            return list(csv.DictReader(file))

    def read(self, path):
        """Returns the content of a JSON file of the run, `None` if the file is missing.

        Raises:
            ValueError: if the file is damaged.
        """
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
