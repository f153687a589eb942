"""The report: one or several runs on a page of their own."""

import pathlib

from keras_mart import files
from keras_mart.evaluation.report import page, read

__all__ = ["report"]


def report(runs, path):
    """Writes what is known of one or several runs to one HTML file that needs nothing else, not even a network.

    It shows training curves, accuracy under attacks with 95% intervals, of each class and against epsilon, the gap
    between PGD-20 and AutoAttack, the checks for false robustness, the confusions under the strongest attack,
    adversarial examples, and each run's flags and versions. A part whose data are missing says which command measures
    them.

    Args:
        runs: a run directory, a list of them, or a mapping of titles to them; by default a run's title is its method. A
            directory in which several methods were run stands for all of them (but not in a mapping).
        path: where the file goes. It is written whole or not at all, in the place of an older one.

    Returns:
        The file's `pathlib.Path`.

    Raises:
        ValueError: no run, a directory that holds none or several, a damaged file in it, or a path that cannot be
            written.
    """
    subjects = read.subjects(runs)
    path = pathlib.Path(path)
    _write(path, page.page(subjects))
    return path


def _write(path, text):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"`path` must be a file that can be written. Received: {path} ({error})") from error
