"""Studies: runs of the command line, several at a time, with their results in one file.

A run is trained and evaluated by `python -m experiments.train`, the command line with the experiments' own methods, in
its own folder below --root. An interrupted run resumes; stages that are in the results are skipped. With --seconds, the
program saves the current runs in time, prints what is unfinished and exits, and the same command resumes.
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

POLL = 1.0  # seconds between two checks of the processes
# The processes are terminated this many seconds before the end of --seconds. A training saves within a few seconds; one
# that XLA's compiler blocks for longer is killed at the end, and resumes from its last epoch.
MARGIN = 30


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluations.

    Attributes:
        name: unique in its study.
        flags: {name: value} of the training's flags.
        evaluations: {name: flags} of the evaluations.
        trained: name of another study, whose run of the same name is evaluated instead of training one.
        weights: whether both checkpoints' weights are saved in float16 beside the results, and evaluated so rounded.
    """

    name: str
    flags: dict
    evaluations: dict = dataclasses.field(default_factory=dict)
    trained: str | None = None
    weights: bool = False


class Study:
    """The runs of one experiment, in `<root>/<name>/<run>/`, and their results in `<results>/<name>.json`.

    Args:
        name: name of the study.
        root, results: paths of the folders of runs and results.
        jobs: number of simultaneous runs.
        only: text that a run's name must contain.
        lock: file that the runs' processes keep open.
        seconds: time after which the program saves and exits; no limit by default.
    """

    def __init__(self, name, root, results, jobs, only="", lock=None, seconds=None):
        self.name = name
        self.root = root
        self.path = results / f"{name}.json"
        self.jobs = jobs
        self.only = only
        self.lock = lock
        self.deadline = time.monotonic() + (math.inf if seconds is None else seconds)
        self.results = self._read()

    def _read(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def directory(self, run):
        """Returns the directory in which a run is trained."""
        return Directory(self.root / (run.trained or self.name) / run.name)

    def evaluated_directory(self, run):
        """Returns the directory whose checkpoints are evaluated: the run's own, or that of its rounded weights."""
        directory = self.directory(run)
        return Directory(f"{directory.path}-float16") if run.weights else directory

    def weights_prefix(self, run):
        """Returns the prefix of the paths of a run's saved weights."""
        return self.path.parent / self.name / run.name

    def has_weights(self, run):
        """Returns whether the weights of a run were saved and all their files exist."""
        exist = all(weights.paths(self.weights_prefix(run), which) for which in weights.CHECKPOINTS)
        return exist and "weights" in self.results.get(run.name, {})

    def unfinished(self, runs):
        """Returns the selected runs that are not complete.

        Raises:
            SystemExit: if the results contain one of the runs with other flags, or runs of another study are missing.
        """
        other = [run.name for run in runs if self.results.get(run.name, {"flags": run.flags})["flags"] != run.flags]
        if other:
            sys.exit(
                f"{self.path} contains runs that were trained with other flags: {', '.join(other)}. Use another --root "
                "and --results, or remove them from it."
            )
        unfinished = [run for run in runs if self.only in run.name and self.stages(run)]
        missing = [run.name for run in unfinished if run.trained and not self._is_trained(run)]
        if missing:
            trained = next(run.trained for run in unfinished if run.trained)
            sys.exit(
                f"{self.name} evaluates runs of `python -m experiments.{trained}` that are missing or have other "
                f"flags: {', '.join(missing)}"
            )
        return unfinished

    def _is_trained(self, run):
        """Returns whether the study that trains a run has done so with these flags."""
        path = self.path.with_name(f"{run.trained}.json")
        record = json.loads(path.read_text()).get(run.name, {}) if path.exists() else {}
        return bool(record.get("history")) and record["flags"] == run.flags and self.directory(run).last.exists()

    def require(self, runs):
        """Trains the runs whose checkpoints do not exist, as other runs need them."""
        self._run([run for run in runs if self.stages(run) or not self.directory(run).last.exists()])

    def run(self, runs):
        """Completes the runs.

        Raises:
            SystemExit: if a run failed, after all others are complete; or with status 0 at the end of the time.
        """
        unfinished = self.unfinished(runs)
        print(f"{self.name}: {len(unfinished)} of {len(runs)} runs are unfinished", flush=True)
        self._run(unfinished)

    def _run(self, waiting):
        waiting, working, failed = list(waiting), [], []
        try:
            while (waiting or working) and time.monotonic() < self.deadline - MARGIN:
                while waiting and len(working) < self.jobs:
                    working.append(Work(self, waiting.pop(0)))
                time.sleep(POLL)
                failed += [work.run.name for work in working if not work.advance()]
                working = [work for work in working if work.process is not None]
        finally:
            for work in working:
                work.terminate()
            for work in working:  # after all were terminated, since each takes time to save
                work.wait(self.deadline)
        self._print_unfinished([(work.run, work.stages) for work in working])
        self._print_unfinished([(run, self.stages(run) or ["train"]) for run in waiting])
        if failed:
            sys.exit(f"{self.name}: failed: {', '.join(failed)}; see {self.root / self.name}/<run>.log")
        if waiting or working:
            sys.exit(0)

    def _print_unfinished(self, pairs):
        """Prints the remaining stages of (run, stages) pairs, and the epoch that a training has reached."""
        for run, stages in pairs:
            if stages:
                rows = self.directory(run).rows() if "train" in stages else ()
                epoch = f" (epoch {len(rows)} of {run.flags['epochs']})" if rows else ""
                print(f"{self.name}: {run.name}: unfinished: {', '.join(stages)}{epoch}", flush=True)

    def record(self, run, **entries):
        """Adds entries to the record of a run, and writes the results."""
        self.results = self._read()  # another --root may have written them meanwhile
        record = self.results.setdefault(run.name, {"seconds": {}, "history": [], "evaluations": {}})
        record |= {"flags": run.flags, "seed": run.flags.get("seed", 0)}
        record |= {"machine": measure.machine(), "jobs": self.jobs}
        for name, value in entries.items():
            record[name] = {**record.get(name, {}), **value} if isinstance(value, dict) else value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(self.path) as unfinished:
            unfinished.write_text(json.dumps(self.results, indent=1) + "\n")

    def stages(self, run):
        """Returns the remaining stages of a run: "train", "weights" (which saves them) and names of evaluations."""
        record = self.results.get(run.name, {})
        evaluations = record.get("evaluations", {})
        done = {name for name, each in evaluations.items() if each["flags"] == run.evaluations.get(name)}
        stages = [name for name in run.evaluations if name not in done]
        if run.weights and ("weights" not in record or (stages and not self.evaluated_directory(run).last.exists())):
            stages = ["weights", *stages]
        checkpoints = self.directory(run).last, self.evaluated_directory(run).last
        has_network = self.has_weights(run) or any(each.exists() for each in checkpoints)
        is_trained = record.get("history") and (not stages or has_network)
        return stages if run.trained or is_trained else ["train", *stages]


def outcomes(evaluation, which, attack):
    """Returns [examples] booleans, whether the "best" or "last" checkpoint was correct, from a recorded evaluation."""
    packed = np.frombuffer(bytes.fromhex(evaluation["outcomes"][which][attack]), np.uint8)
    return np.unpackbits(packed)[: evaluation[which]["examples"]].astype(bool)
