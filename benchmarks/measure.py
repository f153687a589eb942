"""What the benchmarks share: child processes that take turns, tables, and a description of the machine.

This side of a benchmark imports no TensorFlow: on Linux a child's peak memory counts from that of its parent.
"""

import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parents[1]
# So much of a failed child's complaint is shown.
LAST_CHARACTERS = 3000
# Begins the lines of a child's output that are answers.
ANSWER = "answer: "
PATHS = ("PYTHONPATH", "LD_LIBRARY_PATH")  # which may lead to another Python's packages and libraries


def names(text):
    """A comma-separated list, as argparse takes its type."""
    return [each.strip() for each in text.split(",") if each.strip()]


def numbers(text):
    """A comma-separated list of positive integers, as argparse takes its type."""
    return [positive(each) for each in names(text)]


def positive(text):
    """An integer of at least 1, as argparse takes its type."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


class Failed(SystemExit):
    """A child that failed or ran over its time: ends the benchmark with its message where nobody catches it.

    `answer` is what the child had answered by then, `None` for nothing.
    """

    def __init__(self, message, answer):
        super().__init__(message)
        self.answer = answer


def run(module, job, *, timeout=None, interpreter=sys.executable, environment=os.environ):
    """What `python -m benchmarks.<module>` answers to a job: a child process of its own, and the last of its answers.

    Raises:
        Failed: a child that failed, or took longer than `timeout` seconds.
    """
    command = [interpreter, "-m", f"benchmarks.{module}", json.dumps(job)]
    status, printed, complaint = _ended(command, {"TF_CPP_MIN_LOG_LEVEL": "2", **environment}, timeout)
    answers = [line for line in printed.splitlines() if line.startswith(ANSWER)]
    answered = json.loads(answers[-1].removeprefix(ANSWER)) if answers else None
    if status is None:
        raise Failed(f"benchmarks.{module} took longer than {timeout:.0f} seconds for {job}", answered)
    if status:
        raise Failed(f"benchmarks.{module} failed for {job}:\n{complaint[-LAST_CHARACTERS:]}", answered)
    return answered


def _ended(command, environment, timeout):
    """The exit status of a command, `None` where it was killed after `timeout` seconds, its output and its errors."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as child:
        try:
            printed, complaint = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # the processes that it started, too
            return None, *child.communicate()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return child.returncode, printed, complaint


def torch(python=None):
    """What `run` needs for a child with PyTorch: a Python and the environment without paths; `None` for neither.

    Args:
        python: the Python to take; by default this one or /usr/bin/python3, whichever has PyTorch.
    """
    environment = {key: value for key, value in os.environ.items() if key not in PATHS}
    for each in [python] if python else [sys.executable, "/usr/bin/python3"]:
        command = [each, "-c", "import torch"]
        found = shutil.which(each) and subprocess.run(command, env=environment, stderr=subprocess.DEVNULL)
        if found and not found.returncode:
            return {"interpreter": each, "environment": environment}
    return None


def say(answered):
    """In the child: prints an answer, as `run` reads it; a later one takes its place."""
    print(f"\n{ANSWER}{json.dumps(answered)}", flush=True)


def answer(function):
    """In the child: says what the function makes of the job."""
    say(function(**json.loads(sys.argv[1])))


def alternate(jobs, rounds):
    """The answers to each (module, job), one a round.

    Every round runs all jobs in turn, so that what slows the machine down for a while slows all of them down.
    """
    answers = [[] for _ in jobs]
    for number in range(rounds):
        for (module, job), each in zip(jobs, answers, strict=True):
            print(f"round {number + 1} of {rounds}: {module} {' '.join(map(str, job.values()))}", file=sys.stderr)
            each.append(run(module, job))
    return answers


def compare(rows, keys, base):
    """Adds `vs_<base>` to the rows: how many times faster they are than that variant at the same values of the keys.

    It is the median over the rounds of the ratio of the median `samples` (a row's seconds, a list for each round): two
    processes that ran one after the other met about the same machine.
    """
    bases = {tuple(row[key] for key in keys): row["samples"] for row in rows if row["variant"] == base}
    for row in rows:
        theirs = bases.get(tuple(row[key] for key in keys))
        if theirs:
            pairs = zip(theirs, row["samples"], strict=True)
            row[f"vs_{base}"] = statistics.median(
                statistics.median(their) / statistics.median(our) for their, our in pairs
            )


def print_table(rows, columns):
    """Prints rows (dictionaries) in columns of (heading, key, format); what a row lacks is a dash."""
    lines = [[heading for heading, _, _ in columns]]
    for row in rows:
        cells = ((row.get(key), form) for _, key, form in columns)
        lines.append(["-" if value is None else format(value, form) for value, form in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [">" if form else "<" for _, _, form in columns]  # numbers to the right, words to the left
    for line in lines:
        print("  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)))
    print()


def machine():
    """What the figures were measured on."""
    versions = {package: _version(package) for package in ("tensorflow", "keras", "numpy", "keras_mart")}
    gpu = {"gpu": name} if (name := _gpu()) else {}
    return {"cpu": _cpu(), "cores": os.cpu_count(), **gpu, "python": platform.python_version(), **versions}


def resident():
    """Bytes: the largest resident set of this process so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def line(described):
    """A dictionary on one line."""
    return ", ".join(f"{key} {value}" for key, value in described.items())


def _cpu():
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _gpu():
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return ", ".join(subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[:-1])


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def write(path, **contents):
    """Keeps the figures and the samples they come from as JSON, where a path was given."""
    if path:
        pathlib.Path(path).write_text(json.dumps(contents, indent=1) + "\n")
