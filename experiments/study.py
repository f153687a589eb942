"""What every experiment is made of: runs of the command line, some at a time, and one file with what came out.

A run is trained and evaluated by `python -m experiments.train`, the command line with the experiments' own methods, in
a folder of its own below --root. Broken off, it goes on where it was; what the results hold already is not done again.
"""

import dataclasses
import json
import sys
import time

import numpy as np

from benchmarks import measure
from experiments.work import Work
from keras_mart import files
from keras_mart.evaluation.run import Run as Directory

POLL = 1.0  # seconds between two looks at the processes


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
        self.results = self._read()

    def _read(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

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
        left = [run for run in runs if self.only in run.name and self.stages(run)]
        missing = [run.name for run in left if run.trained and not self._is_trained(run)]
        if missing:
            trained = next(run.trained for run in left if run.trained)
            sys.exit(
                f"{self.name} judges runs of `python -m experiments.{trained}` that are missing or have other "
                f"flags: {', '.join(missing)}"
            )
        return left

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
                    working.append(Work(self, waiting.pop(0)))
                time.sleep(POLL)
                failed += [work.run.name for work in working if not work.go_on()]
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
        self.results = self._read()  # another --root may have written there meanwhile
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


def outcomes(evaluation, which, attack):
    """[examples] booleans, whether the "best" or the "last" checkpoint was right, from an evaluation of the results."""
    packed = np.frombuffer(bytes.fromhex(evaluation["outcomes"][which][attack]), np.uint8)
    return np.unpackbits(packed)[: evaluation[which]["examples"]].astype(bool)
