"""The HTML report on one or several runs."""

import os
import pathlib
from collections.abc import Iterable, Mapping

from keras_mart import files
from keras_mart.evaluation.report import page, read

__all__ = ["report"]


def report(
    runs: str | os.PathLike | Iterable[str | os.PathLike] | Mapping[str, str | os.PathLike], path: str | os.PathLike
) -> pathlib.Path:
    """Writes a report on one or several runs to a self-contained HTML file, which can be viewed offline.

    It shows training curves, accuracy under attacks with 95% intervals, accuracy per class and against epsilon, the gap
    between PGD-20 and AutoAttack, the checks for false robustness, the confusions under the strongest attack,
    adversarial examples, and each run's flags and versions. A section whose data are missing names the command that
    measures them.

    Args:
        runs: a run directory, a list of them, or a mapping from titles to them; by default a run's title is its method.
            A directory in which several methods were run stands for all of them (except in a mapping).
        path: path of the HTML file. It is written atomically and replaces an older one.

    Returns:
        The `pathlib.Path` of the file.

    Raises:
        ValueError: if there is no run, a directory contains none or several, one of its files is damaged, or `path`
            cannot be written.
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
