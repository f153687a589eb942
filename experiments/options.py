"""What every experiment's command line takes."""

import argparse
import fcntl
import pathlib
import signal
import sys

from benchmarks import measure
from experiments.study import MARGIN, Study


def begin(name, description, *, train_examples, epochs, dataset="tfds:mnist", classes=None, changes=False):
    """Reads an experiment's command line; returns its `Study` and the options.

    Args:
        name: of the study.
        description: what --help says.
        train_examples, epochs, dataset, classes: the scale of the results that the repository holds; where `classes`
            is `None`, all are taken.
        changes: whether flags of the recipe can be changed.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m experiments.{name}", description=description, formatter_class=form)
    parser.add_argument("--dataset", default=dataset, help="tfds:<name> or npz:<path> (default %(default)s)")
    scale = "training images, 0 for all (default %(default)s); another scale needs another --root and --results"
    parser.add_argument("--train_examples", type=int, default=train_examples, help=scale)
    parser.add_argument(
        "--epochs", type=measure.positive, default=epochs, help="epochs of each run (default %(default)s)"
    )
    if classes:
        parser.add_argument("--classes", type=int, default=classes, help="the first so many (default %(default)s)")
    if changes:
        change = "flags that take the place of the recipe's, such as --change precision=float32 batch_size=16"
        parser.add_argument("--change", nargs="+", default=[], type=_pair, metavar="FLAG=VALUE", help=change)
    parser.add_argument("--jobs", type=measure.positive, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--root", type=pathlib.Path, default="runs", help="where the runs go (default %(default)s)")
    parser.add_argument("--results", type=pathlib.Path, help="where the results go (default: results in --root)")
    parser.add_argument("--only", default="", help="do only runs whose name holds this text")
    seconds = "save all and end in so many seconds; the same command resumes (default: end when all is done)"
    parser.add_argument("--seconds", type=measure.positive, help=seconds)
    options = parser.parse_args()
    if options.seconds is not None and options.seconds <= MARGIN:
        parser.error(f"--seconds must be more than {MARGIN}, which saving may take. Received: {options.seconds}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    lock = _locked(options.root)
    results = options.results or options.root / "results"
    return Study(name, options.root, results, options.jobs, options.only, lock, options.seconds), options


def _pair(text):
    """A flag's name and its value, as argparse takes its type."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(text)
    return name, value


def _locked(root):
    """The file that one experiment at a time holds."""
    root.mkdir(parents=True, exist_ok=True)
    lock = (root / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"Another experiment is at work in {root}, or runs that it has left behind.")
    return lock
