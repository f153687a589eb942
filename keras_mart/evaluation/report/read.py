"""Reads the runs of a report."""

import collections
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from keras_mart.evaluation.report.subject import Subject, flag
from keras_mart.evaluation.run import Run
from keras_mart.evaluation.table import Table


def subjects(runs):
    """Returns the `Subject` of each run.

    Raises:
        ValueError: as in `report`.
    """
    if isinstance(runs, (str, os.PathLike)):
        runs = [runs]
    if isinstance(runs, Mapping):
        paths = [pathlib.Path(path) for path in runs.values()]
    else:
        paths = [run for path in runs for run in _of_each_method(pathlib.Path(path))]
    if not paths:
        raise ValueError(f"`runs` must name at least one run directory. Received: {runs!r}")
    flags = [_flags(path) for path in paths]
    titles = list(map(str, runs)) if isinstance(runs, Mapping) else _titles(paths, flags)
    return [_subject(*each) for each in zip(titles, range(len(paths)), paths, flags, strict=True)]


def _of_each_method(path):
    """Returns the run directories inside the directory of several methods, or the directory itself if it has one."""
    file = Run(path).flags
    methods = (flag(file.read_text().splitlines(), "method") or "").split(",") if file.is_file() else []
    return [path / method for method in methods] if len(methods) > 1 else [path]


def _flags(path):
    file = Run(path).flags
    if not file.is_file():
        raise ValueError(f"A run directory must contain flags.cfg. Received: {path}, which does not.")
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    methods = (flag(lines, "method") or "").split(",")
    if len(methods) > 1:
        within = ", ".join(str(path / method) for method in methods)
        raise ValueError(f"A run must be of one method. Received: {path}, which contains {within}.")
    return lines


def _titles(paths, flags):
    """Returns the methods as titles; equal ones get the folder's name, or its path if the names are equal too."""
    methods = [flag(lines, "method") or path.resolve().name for path, lines in zip(paths, flags, strict=True)]
    titles = methods
    for label in (lambda path: path.resolve().name, str):
        same = collections.Counter(titles)
        titles = [
            f"{method} ({label(path)})" if same[title] > 1 else title
            for method, path, title in zip(methods, paths, titles, strict=True)
        ]
    return titles


def _subject(title, number, path, flags):
    run = Run(path)
    try:
        table = Table.load(run.predictions("best")) if run.predictions("best").exists() else None
        rows = [{column: _number(cell) for column, cell in row.items()} for row in run.rows()]
        evaluation, diagnosis = _object(run, run.evaluation), _object(run, run.diagnosis)
        return Subject(title, number, run, flags, rows, evaluation, diagnosis, table, _arrays(run.gallery))
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"The files of a run must be readable. Received: {path} ({error})") from error


def _object(run, path):
    content = run.read(path)
    if not isinstance(content, dict | None):
        raise ValueError(f"{path} does not contain a JSON object")
    return content or {}


def _arrays(path):
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _number(cell):
    """Returns a cell of history.csv as a number, `None` if it is empty or, as when training diverged, not finite."""
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None
