"""What every experiment is made of: runs of the command line, some at a time, and one file with what came out.

A run is trained and evaluated by `python -m experiments.train`, the command line with the experiments' own methods, in
a folder of its own below --root. Broken off, it goes on where it was; what the results hold already is not done again.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

from benchmarks import measure
from keras_mart import files
from keras_mart.evaluation.run import Run as Directory
from keras_mart.evaluation.table import Table

POLL = 1.0  # seconds between two looks at the processes
DIGITS = 6  # significant digits of what the results keep of the history


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluations.

    Attributes:
        name: unique in its study.
        flags: name to value of the training's flags.
        evaluations: name to the flags of an evaluation.
        trained: name of another study, whose run of the same name is evaluated; nothing is trained then.
    """

    name: str
    flags: dict
    evaluations: dict = dataclasses.field(default_factory=dict)
    trained: str | None = None


class Study:
    """The runs of one experiment, in `<root>/<name>/<run>/`, and their results in `<results>/<name>.json`."""

    def __init__(self, name, root, results, jobs, only="", lock=None):
        self.name = name
        self.root = root
        self.path = results / f"{name}.json"
        self.jobs = jobs
        self.only = only
        self.lock = lock
        self.results = json.loads(self.path.read_text()) if self.path.exists() else {}

    def directory(self, run):
        return Directory(self.root / (run.trained or self.name) / run.name)

    def left(self, runs):
        """Those of the runs that are wanted and not whole.

        Raises:
            SystemExit: the results hold one of them with other flags.
        """
        other = [run.name for run in runs if self.results.get(run.name, {"flags": run.flags})["flags"] != run.flags]
        if other:
            sys.exit(
                f"{self.path} holds runs that were trained with other flags: {', '.join(other)}. Give another --root "
                "and --results, or take them out of it."
            )
        missing = [run.name for run in runs if run.trained and not self._is_trained(run)]
        if missing:
            trained = next(run.trained for run in runs if run.trained)
            sys.exit(
                f"{self.name} judges runs of `python -m experiments.{trained}` that are missing or have other "
                f"flags: {', '.join(missing)}"
            )
        return [run for run in runs if self.only in run.name and self.stages(run)]

    def _is_trained(self, run):
        """Whether the study that trains a run has done so, with these flags."""
        path = self.path.with_name(f"{run.trained}.json")
        kept = json.loads(path.read_text()).get(run.name, {}) if path.exists() else {}
        return bool(kept.get("history")) and kept["flags"] == run.flags and self.directory(run).last.exists()

    def need(self, runs):
        """Trains those of the runs whose checkpoints are not there, for others that build on them."""
        self._do([run for run in runs if self.stages(run) or not self.directory(run).last.exists()])

    def do(self, runs):
        """Does what is left of the runs.

        Raises:
            SystemExit: a run failed; the others were done all the same.
        """
        left = self.left(runs)
        print(f"{self.name}: {len(left)} of {len(runs)} runs are left", flush=True)
        self._do(left)

    def _do(self, waiting):
        waiting, working, failed = list(waiting), [], []
        try:
            while waiting or working:
                while waiting and len(working) < self.jobs:
                    working.append(_Work(self, waiting.pop(0)))
                time.sleep(POLL)
                failed += [work.run.name for work in working if work.go_on() == "failed"]
                working = [work for work in working if work.process is not None]
        finally:
            processes = [work.process for work in working if work.process is not None]
            for process in processes:
                process.terminate()
            for process in processes:  # they save where they are
                process.wait()
        if failed:
            sys.exit(f"{self.name}: failed: {', '.join(failed)}; {self.root / self.name}/<run>.log says why")

    def record(self, run, **found):
        """Adds to what is kept of a run, and writes the results."""
        kept = self.results.setdefault(run.name, {"seconds": {}, "history": [], "evaluations": {}})
        kept |= {"flags": run.flags, "seed": run.flags.get("seed", 0), "machine": measure.machine(), "jobs": self.jobs}
        for name, value in found.items():
            kept[name] = {**kept.get(name, {}), **value} if isinstance(value, dict) else value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(self.path) as unfinished:
            unfinished.write_text(json.dumps(self.results, indent=1) + "\n")

    def stages(self, run):
        """What is left to do for a run: "train", and the names of evaluations."""
        kept = self.results.get(run.name, {})
        done = {
            name for name, each in kept.get("evaluations", {}).items() if each["flags"] == run.evaluations.get(name)
        }
        stages = [name for name in run.evaluations if name not in done]
        there = kept.get("history") and (not stages or self.directory(run).last.exists())
        return stages if run.trained or there else ["train", *stages]


class _Work:
    """The processes of one run, one after the other."""

    def __init__(self, study, run):
        self.study = study
        self.run = run
        self.directory = study.directory(run)
        self.log = study.root / study.name / f"{run.name}.log"
        self.stages = study.stages(run) or ["train"]
        self._start()

    def _start(self):
        stage = self.stages[0]
        flags = {"workdir": self.directory.path}
        if stage == "train":
            flags |= {"mode": "train", "resume": True, **self.run.flags}
        else:
            flags |= {"mode": "evaluate", "seed": 0, **self.run.evaluations[stage]}
        command = [sys.executable, "-m", "experiments.train", *(f"--{name}={value}" for name, value in flags.items())]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{self.study.name}: {self.run.name}: {stage}", flush=True)
        with self.log.open("a") as log:
            environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(_threads(self.study.jobs))}
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which lets them save
                pass_fds=[self.study.lock.fileno()] if self.study.lock else [],  # locked as long as one of them lives
            )  # fmt: skip
        self.spent = self.log.with_name(f"{self.run.name}.{stage}.seconds")  # over all attempts
        self.before = float(self.spent.read_text()) if self.spent.exists() else 0.0
        self.begun = time.time()

    def go_on(self):
        """Starts the next stage where one is over; returns "working", "over" or "failed"."""
        status = self.process.poll()
        seconds = self.before + time.time() - self.begun
        self.spent.write_text(f"{seconds:.1f}\n")
        if status is None:
            return "working"
        if status:
            self.process = None
            return "failed"
        self._record(self.stages.pop(0), seconds)
        self.spent.unlink()  # the results hold it now; done again, the stage counts from 0
        if self.stages:
            self._start()
            return "working"
        self.process = None
        return "over"

    def _record(self, stage, seconds):
        if stage == "train":
            rows = [{name: _rounded(value) for name, value in row.items()} for row in self.directory.rows()]
            self.study.record(self.run, history=rows, seconds={stage: round(seconds)})
        else:
            found = {"flags": self.run.evaluations[stage], **self.directory.read(self.directory.evaluation)}
            found["outcomes"] = {which: _packed(self.directory.predictions(which)) for which in ("best", "last")}
            self.study.record(self.run, evaluations={stage: found}, seconds={stage: round(seconds)})


def _packed(path):
    """Attack to its outcomes for each test image, as bits in hexadecimal; without the stages of compound attacks."""
    found = Table.load(path).outcomes
    return {name: np.packbits(right).tobytes().hex() for name, right in found.items() if "/" not in name}


def outcomes(evaluation, which, attack):
    """[examples] booleans, whether the "best" or the "last" checkpoint was right, from an evaluation of the results."""
    packed = np.frombuffer(bytes.fromhex(evaluation["outcomes"][which][attack]), np.uint8)
    return np.unpackbits(packed)[: evaluation[which]["examples"]].astype(bool)


def begin(name, description, *, train_examples, epochs, dataset="tfds:mnist", classes=None):
    """Reads an experiment's command line; returns its `Study` and the options.

    Args:
        name: of the study.
        description: what --help says.
        train_examples, epochs, dataset, classes: the scale of the results that the repository holds; where `classes`
            is `None`, all are taken.
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
    parser.add_argument("--jobs", type=measure.positive, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--root", type=pathlib.Path, default="runs", help="where the runs go (default %(default)s)")
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results")
    parser.add_argument("--only", default="", help="do only runs whose name holds this text")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    lock = _locked(options.root)
    return Study(name, options.root, options.results, options.jobs, options.only, lock), options


def _locked(root):
    """The file that one experiment at a time holds."""
    root.mkdir(parents=True, exist_ok=True)
    lock = (root / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"Another experiment is at work in {root}, or runs that it has left behind.")
    return lock


def _rounded(text):
    value = float(text) if text else None
    return value if value is None else float(f"{value:.{DIGITS}g}")


def _threads(jobs):
    return max(1, (os.cpu_count() or 1) // jobs)
