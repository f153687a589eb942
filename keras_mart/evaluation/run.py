"""The run directory: which files it holds, and what they say."""

import csv
import json
import pathlib


class Run:
    """The files of one run of one method.

    flags.cfg, history.csv, tensorboard/, best.keras, last.keras, checkpoints/, export/<version>/, and from the test set
    evaluation.json, best.npz and last.npz (each checkpoint's predictions), diagnosis.json, gallery.npz, and evaluating/
    as long as an evaluation is not finished. What is from the test set is of the checkpoints beside it: training that
    goes on removes it.

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
        """Where the predictions of the "best" or the "last" checkpoint lie, as `Table.save` wrote them."""
        return self.path / f"{which}.npz"

    def rows(self):
        """The rows of history.csv, one an epoch, as dictionaries of text."""
        if not self.history.exists():
            return []
        with self.history.open(newline="") as file:
            return list(csv.DictReader(file))

    def read(self, path):
        """What a JSON file of the run says, `None` where it is missing.

        Raises:
            ValueError: the file is damaged.
        """
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
