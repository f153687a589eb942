"""What every experiment is made of: runs of the command line, some at a time, and one file with what came out.

A run is trained and evaluated by `python -m experiments.train`, the command line with the experiments' own methods, in
a folder of its own below --root. Broken off, it resumes where it was; what the results hold already is not done again.
With --seconds, what is at work is saved in time, the program says what is left and ends, and the same command resumes.
"""

import dataclasses
import json
import math
import sys
import time

import numpy as np

from benchmarks import measure
from experiments import weights
from experiments.work import Work
from keras_mart import files
from keras_mart.evaluation.run import Run as Directory

POLL = 1.0  # seconds between two looks at the processes
# So many seconds before the end of --seconds the processes are asked to end. A training saves within a few; one that
# XLA's compiler holds for longer is killed at the end, and resumes from its last epoch.
MARGIN = 30


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluations.

    Attributes:
        name: unique in its study.
        flags: name to value of the training's flags.
        evaluations: name to the flags of an evaluation.
        trained: name of another study, whose run of the same name is evaluated; nothing is trained then.
        weights: whether both checkpoints are kept beside the results, as weights in float16, and judged as such.
    """

    name: str
    flags: dict
    evaluations: dict = dataclasses.field(default_factory=dict)
    trained: str | None = None
    weights: bool = False


class Study:
    """The runs of one experiment, in `<root>/<name>/<run>/`, and their results in `<results>/<name>.json`.

    Args:
        name: of the study.
        root, results: paths of folders.
        jobs: number of runs at a time.
        only: text that a run's name must hold.
        lock: a file that the processes of the runs hold open.
        seconds: the time after which all is saved and the program ends, `None` for no such time.
    """

    def __init__(self, name, root, results, jobs, only="", lock=None, seconds=None):
        self.name = name
        self.root = root
        self.path = results / f"{name}.json"
        self.jobs = jobs
        self.only = only
        self.lock = lock
        self.end = time.monotonic() + (math.inf if seconds is None else seconds)
        self.results = self._read()

    def _read(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def directory(self, run):
        return Directory(self.root / (run.trained or self.name) / run.name)

    def judged(self, run):
        """The directory whose checkpoints are evaluated: the run's own, or that of the weights which are kept."""
        directory = self.directory(run)
        return Directory(f"{directory.path}-float16") if run.weights else directory

    def kept(self, run):
        """Where the weights of a run are kept: the beginning of the files' paths."""
        return self.path.parent / self.name / run.name

    def has_weights(self, run):
        """Whether the weights of a run were kept and all files are there."""
        there = all(weights.paths(self.kept(run), which) for which in weights.CHECKPOINTS)
        return there and "weights" in self.results.get(run.name, {})

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
            while (waiting or working) and time.monotonic() < self.end - MARGIN:
                while waiting and len(working) < self.jobs:
                    working.append(Work(self, waiting.pop(0)))
                time.sleep(POLL)
                failed += [work.run.name for work in working if not work.go_on()]
                working = [work for work in working if work.process is not None]
        finally:
            for work in working:
                work.ask_to_end()
            for work in working:  # they save where they are
                work.end(self.end)
        self._tell([(work.run, work.stages) for work in working])
        self._tell([(run, self.stages(run) or ["train"]) for run in waiting])
        if failed:
            sys.exit(f"{self.name}: failed: {', '.join(failed)}; {self.root / self.name}/<run>.log says why")
        if waiting or working:
            sys.exit(0)

    def _tell(self, left):
        """Prints which stages of runs are left where the time is over, and how far a training is."""
        for run, stages in left:
            if stages:
                rows = self.directory(run).rows() if "train" in stages else ()
                epoch = f" (epoch {len(rows)} of {run.flags['epochs']})" if rows else ""
                print(f"{self.name}: {run.name}: left: {', '.join(stages)}{epoch}", flush=True)

    def record(self, run, **found):
        """Adds to what is kept of a run, and writes the results."""
        self.results = self._read()  # another --root may have written there meanwhile
        kept = self.results.setdefault(run.name, {"seconds": {}, "history": [], "evaluations": {}})
        kept |= {"flags": run.flags, "seed": run.flags.get("seed", 0), "machine": measure.machine(), "jobs": self.jobs}
        for name, value in found.items():
            kept[name] = {**kept.get(name, {}), **value} if isinstance(value, dict) else value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(self.path) as unfinished:
            unfinished.write_text(json.dumps(self.results, indent=1) + "\n")

    def stages(self, run):
        """What is left to do for a run: "train", "weights", which keeps them, and the names of evaluations."""
        kept = self.results.get(run.name, {})
        done = {
            name for name, each in kept.get("evaluations", {}).items() if each["flags"] == run.evaluations.get(name)
        }
        stages = [name for name in run.evaluations if name not in done]
        if run.weights and ("weights" not in kept or (stages and not self.judged(run).last.exists())):
            stages = ["weights", *stages]
        networks = self.directory(run).last, self.judged(run).last
        is_there = self.has_weights(run) or any(each.exists() for each in networks)
        there = kept.get("history") and (not stages or is_there)
        return stages if run.trained or there else ["train", *stages]


def outcomes(evaluation, which, attack):
    """[examples] booleans, whether the "best" or the "last" checkpoint was right, from an evaluation of the results."""
    packed = np.frombuffer(bytes.fromhex(evaluation["outcomes"][which][attack]), np.uint8)
    return np.unpackbits(packed)[: evaluation[which]["examples"]].astype(bool)
