"""The command-line options that all experiments share."""

import argparse
import fcntl
import pathlib
import signal
import sys

from benchmarks import measure
from experiments.study import MARGIN, Study


def parse(name, description, *, train_examples, epochs, dataset="tfds:mnist", classes=None, changes=False):
    """Parses an experiment's command line, and returns its `Study` and the options.

    Args:
        name: name of the study.
        description: text for --help.
        train_examples, epochs, dataset, classes: defaults, the scale of the results in the repository; `classes=None`
            takes all classes.
        changes: whether the recipe's flags can be changed.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m experiments.{name}", description=description, formatter_class=form)
    parser.add_argument("--dataset", default=dataset, help="tfds:<name> or npz:<path> (default %(default)s)")
    scale = "training images, 0 for all (default %(default)s); a different scale needs its own --root and --results"
    parser.add_argument("--train_examples", type=int, default=train_examples, help=scale)
    parser.add_argument(
        "--epochs", type=measure.positive, default=epochs, help="epochs of each run (default %(default)s)"
    )
    if classes:
        parser.add_argument(
            "--classes", type=int, default=classes, help="number of classes, the first ones (default %(default)s)"
        )
    if changes:
        change = "flags that override the recipe's, such as --change precision=float32 batch_size=16"
        parser.add_argument("--change", nargs="+", default=[], type=_pair, metavar="FLAG=VALUE", help=change)
    parser.add_argument(
        "--jobs", type=measure.positive, default=1, help="number of simultaneous runs, which share the cores"
    )
    parser.add_argument("--root", type=pathlib.Path, default="runs", help="folder of the runs (default %(default)s)")
    parser.add_argument("--results", type=pathlib.Path, help="folder of the results (default: <root>/results)")
    parser.add_argument("--only", default="", help="only runs whose name contains this text")
    seconds = "save and stop after this many seconds; the same command resumes (default: no limit)"
    parser.add_argument("--seconds", type=measure.positive, help=seconds)
    options = parser.parse_args()
    if options.seconds is not None and options.seconds <= MARGIN:
        parser.error(f"--seconds must be more than {MARGIN}, the time reserved for saving. Received: {options.seconds}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    lock = _lock(options.root)
    results = options.results or options.root / "results"
    return Study(name, options.root, results, options.jobs, options.only, lock, options.seconds), options


def _pair(text):
    """Parses "flag=value" for argparse."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(text)
    return name, value


def _lock(root):
    """Returns an open file whose lock allows one experiment at a time in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    lock = (root / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"Another experiment, or a run that it has left behind, is still running in {root}.")
    return lock
