"""The processes of one run, which train and evaluate it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np

from experiments import weights
from keras_mart import files
from keras_mart.evaluation.table import Table

DIGITS = 6  # significant digits of the history in the results


class Work:
    """Runs the stages of a run, each in a process.

    Args:
        study: the `Study`.
        run: a `Run` of it.
    """

    def __init__(self, study, run):
        self.study = study
        self.run = run
        self.directory = study.directory(run)
        self.evaluated = study.evaluated_directory(run)
        self.log = study.root / study.name / f"{run.name}.log"
        self.stages = study.stages(run) or ["train"]
        self._start()

    def _start(self):
        stage = self.stages[0]
        command = [sys.executable, "-m", *self._command(stage)]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{self.study.name}: {self.run.name}: {stage}", flush=True)
        self.seconds_file = self.log.with_name(f"{self.run.name}.{stage}.seconds")  # of all attempts
        self.previous_seconds = float(self.seconds_file.read_text()) if self.seconds_file.exists() else 0.0
        with self.log.open("a") as log:
            environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(_threads(self.study.jobs))}
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment,
                start_new_session=True,  # Ctrl-C must only reach this process, which lets them save
                pass_fds=[self.study.lock.fileno()] if self.study.lock else [],  # keeps the lock while a process runs
            )  # fmt: skip
        self.started = time.time()

    def _command(self, stage):
        """Returns the module that runs a stage, and its flags."""
        module, flags = "train", {"workdir": self.evaluated.path}
        if stage == "train":
            flags = {"workdir": self.directory.path, "mode": "train", "resume": True, **self.run.flags}
        elif stage == "weights":
            module = "float16_run"
            flags |= {"kept": self.study.weights_prefix(self.run), **self.run.flags}
            if not self.study.has_weights(self.run):
                flags["trained"] = self.directory.path
        else:
            flags |= {"mode": "evaluate", "seed": 0, **self.run.evaluations[stage]}
        return [f"experiments.{module}", *(f"--{name}={value}" for name, value in flags.items())]

    def advance(self):
        """Starts the next stage if the current one is complete. Returns whether no process has failed."""
        status = self._poll()
        if status == 0 and self.stages:
            self._start()
        return not status

    def terminate(self):
        """Makes the process save and exit."""
        if self.process is not None:
            self.process.terminate()

    def wait(self, deadline):
        """Waits for the process to exit after `terminate`, and kills it at the deadline (of `time.monotonic`)."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._poll()

    def _poll(self):
        """Writes the elapsed seconds and, if the stage is complete, its results.

        Returns:
            The exit status of the process, `None` while it runs.
        """
        status = self.process.poll()
        seconds = self.previous_seconds + time.time() - self.started
        with files.atomic_file(self.seconds_file) as unfinished:
            unfinished.write_text(f"{seconds:.1f}\n")
        if status is not None:
            self.process = None
        if status == 0:
            self._record(self.stages.pop(0), seconds)
            self.seconds_file.unlink()  # the results have them; a repeated stage counts from 0
        return status

    def _record(self, stage, seconds):
        seconds = {stage: round(seconds)}
        if stage == "train":
            rows = [{name: _rounded(value) for name, value in row.items()} for row in self.directory.rows()]
            self.study.record(self.run, history=rows, seconds=seconds)
        elif stage == "weights":
            prefix = self.study.weights_prefix(self.run)
            names = [path.name for which in weights.CHECKPOINTS for path in weights.paths(prefix, which)]
            self.study.record(self.run, weights=names, seconds=seconds)
        else:
            evaluation = {"flags": self.run.evaluations[stage], **self.evaluated.read(self.evaluated.evaluation)}
            evaluation["outcomes"] = {
                which: _packed(self.evaluated.predictions(which)) for which in weights.CHECKPOINTS
            }
            if self.run.weights:
                evaluation["weights"] = "float16"
            self.study.record(self.run, evaluations={stage: evaluation}, seconds=seconds)


def _packed(path):
    """Returns {attack: outcomes of the test images as hexadecimal bits}, without the stages of compound attacks."""
    found = Table.load(path).outcomes
    return {name: np.packbits(right).tobytes().hex() for name, right in found.items() if "/" not in name}


def _rounded(text):
    value = float(text) if text else None
    return value if value is None else float(f"{value:.{DIGITS}g}")


def _threads(jobs):
    return max(1, (os.cpu_count() or 1) // jobs)
