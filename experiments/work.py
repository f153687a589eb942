"""One run at work: the processes of the command line that train it and judge it, one after the other."""

import os
import signal
import subprocess
import sys
import time

import numpy as np

from experiments import weights
from keras_mart import files
from keras_mart.evaluation.table import Table

DIGITS = 6  # significant digits of what the results keep of the history


class Work:
    """The processes of one run, one after the other."""

    def __init__(self, study, run):
        self.study = study
        self.run = run
        self.directory = study.directory(run)
        self.judged = study.judged(run)
        self.log = study.root / study.name / f"{run.name}.log"
        self.stages = study.stages(run) or ["train"]
        self._start()

    def _start(self):
        stage = self.stages[0]
        command = [sys.executable, "-m", *self._command(stage)]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{self.study.name}: {self.run.name}: {stage}", flush=True)
        self.spent = self.log.with_name(f"{self.run.name}.{stage}.seconds")  # over all attempts
        self.before = float(self.spent.read_text()) if self.spent.exists() else 0.0
        with self.log.open("a") as log:
            environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(_threads(self.study.jobs))}
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which lets them save
                pass_fds=[self.study.lock.fileno()] if self.study.lock else [],  # locked as long as one of them lives
            )  # fmt: skip
        self.begun = time.time()

    def _command(self, stage):
        """The module that does a stage, and its flags."""
        module, flags = "train", {"workdir": self.judged.path}
        if stage == "train":
            flags = {"workdir": self.directory.path, "mode": "train", "resume": True, **self.run.flags}
        elif stage == "weights":
            module = "kept"
            flags |= {"kept": self.study.kept(self.run), **self.run.flags}
            if not self.study.has_weights(self.run):
                flags["trained"] = self.directory.path
        else:
            flags |= {"mode": "evaluate", "seed": 0, **self.run.evaluations[stage]}
        return [f"experiments.{module}", *(f"--{name}={value}" for name, value in flags.items())]

    def go_on(self):
        """Starts the next stage where one is over; returns whether all is well."""
        status = self._look()
        if status == 0 and self.stages:
            self._start()
        return not status

    def ask_to_end(self):
        """Has the process save where it is and end."""
        if self.process is not None:
            self.process.terminate()

    def end(self, until):
        """Waits for the process, which was asked to end; kills it where it has not by then (`time.monotonic`)."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._look()

    def _look(self):
        """Notes the seconds and, where the stage is over, what came out.

        Returns:
            The exit status of the process, `None` while it works.
        """
        status = self.process.poll()
        seconds = self.before + time.time() - self.begun
        with files.atomic_file(self.spent) as unfinished:
            unfinished.write_text(f"{seconds:.1f}\n")
        if status is not None:
            self.process = None
        if status == 0:
            self._record(self.stages.pop(0), seconds)
            self.spent.unlink()  # the results hold it now; done again, the stage counts from 0
        return status

    def _record(self, stage, seconds):
        seconds = {stage: round(seconds)}
        if stage == "train":
            rows = [{name: _rounded(value) for name, value in row.items()} for row in self.directory.rows()]
            self.study.record(self.run, history=rows, seconds=seconds)
        elif stage == "weights":
            kept = [
                path.name for which in weights.CHECKPOINTS for path in weights.paths(self.study.kept(self.run), which)
            ]
            self.study.record(self.run, weights=kept, seconds=seconds)
        else:
            found = {"flags": self.run.evaluations[stage], **self.judged.read(self.judged.evaluation)}
            found["outcomes"] = {which: _packed(self.judged.predictions(which)) for which in weights.CHECKPOINTS}
            if self.run.weights:
                found["weights"] = "float16"
            self.study.record(self.run, evaluations={stage: found}, seconds=seconds)


def _packed(path):
    """Attack to its outcomes for each test image, as bits in hexadecimal; without the stages of compound attacks."""
    found = Table.load(path).outcomes
    return {name: np.packbits(right).tobytes().hex() for name, right in found.items() if "/" not in name}


def _rounded(text):
    value = float(text) if text else None
    return value if value is None else float(f"{value:.{DIGITS}g}")


def _threads(jobs):
    return max(1, (os.cpu_count() or 1) // jobs)
