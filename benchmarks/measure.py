"""Functions that the benchmarks share: alternating child processes, tables, and a description of the machine.

The parent process imports no TensorFlow: on Linux a child's peak memory starts from its parent's.
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
LAST_CHARACTERS = 3000  # shown of a failed child's errors
ANSWER = "answer: "  # prefix of the lines of a child's output that are answers
PATHS = ("PYTHONPATH", "LD_LIBRARY_PATH")  # may lead to another Python's packages and libraries


def names(text):
    """Parses a comma-separated list for argparse."""
    return [each.strip() for each in text.split(",") if each.strip()]


def numbers(text):
    """Parses a comma-separated list of positive integers for argparse."""
    return [positive(each) for each in names(text)]


def positive(text):
    """Parses a positive integer for argparse."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


class Failed(SystemExit):
    """Raised if a child failed or exceeded its time; ends the benchmark with its message unless it is caught.

    Attributes:
        answer: the child's last answer, or `None`.
    """

    def __init__(self, message, answer):
        super().__init__(message)
        self.answer = answer


def run(module, job, *, timeout=None, interpreter=sys.executable, environment=os.environ):
    """Runs a job by `python -m benchmarks.<module>` in a child process, and returns its last answer.

    Raises:
        Failed: if the child failed, or took longer than `timeout` seconds.
    """
    command = [interpreter, "-m", f"benchmarks.{module}", json.dumps(job)]
    status, output, errors = _completed(command, {"TF_CPP_MIN_LOG_LEVEL": "2", **environment}, timeout)
    answers = [line for line in output.splitlines() if line.startswith(ANSWER)]
    answer = json.loads(answers[-1].removeprefix(ANSWER)) if answers else None
    if status is None:
        raise Failed(f"benchmarks.{module} took longer than {timeout:.0f} seconds for {job}", answer)
    if status:
        raise Failed(f"benchmarks.{module} failed for {job}:\n{errors[-LAST_CHARACTERS:]}", answer)
    return answer


def _completed(command, environment, timeout):
    """Returns a command's exit status (`None` if it was killed after `timeout` seconds), output and errors."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as child:
        try:
            output, errors = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # also ends the processes that it started
            return None, *child.communicate()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return child.returncode, output, errors


def torch(python=None):
    """Returns arguments of `run` for a child with PyTorch: a Python, and the environment without `PATHS`.

    Returns `None` if no Python has PyTorch.

    Args:
        python: the Python to use; by default this one or /usr/bin/python3, whichever has PyTorch.
    """
    environment = {key: value for key, value in os.environ.items() if key not in PATHS}
    for each in [python] if python else [sys.executable, "/usr/bin/python3"]:
        command = [each, "-c", "import torch"]
        found = shutil.which(each) and subprocess.run(command, env=environment, stderr=subprocess.DEVNULL)
        if found and not found.returncode:
            return {"interpreter": each, "environment": environment}
    return None


def send(answer):
    """Called in a child: prints an answer for `run`, which replaces earlier ones."""
    print(f"\n{ANSWER}{json.dumps(answer)}", flush=True)


def serve(function):
    """Called in a child: calls the function with the job's values and sends the result as the answer."""
    send(function(**json.loads(sys.argv[1])))


def alternate(jobs, rounds):
    """Returns the answers to each (module, job), one for each round.

    Each round runs all jobs, so that a temporary slowdown of the machine affects all of them.
    """
    answers = [[] for _ in jobs]
    for number in range(rounds):
        for (module, job), each in zip(jobs, answers, strict=True):
            print(f"round {number + 1} of {rounds}: {module} {' '.join(map(str, job.values()))}", file=sys.stderr)
            each.append(run(module, job))
    return answers


def compare(rows, keys, base):
    """Adds `vs_<base>` to the rows, their speed relative to the variant `base` with the same values of the keys.

    It is the median over the rounds of the ratio of the median `samples` (a row's seconds, a list for each round). The
    ratios are within a round, in which the state of the machine is about the same.
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
    """Prints rows (dictionaries) in columns of (heading, key, format); missing values are dashes."""
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
    """Describes the machine and the versions of packages."""
    versions = {package: _version(package) for package in ("tensorflow", "keras", "numpy", "keras_mart")}
    gpu = {"gpu": name} if (name := _gpu()) else {}
    return {"cpu": _cpu(), "cores": os.cpu_count(), **gpu, "python": platform.python_version(), **versions}


def resident():
    """Returns the peak resident set size of this process in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def line(described):
    """Formats a dictionary on one line."""
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
    """Writes figures and samples as JSON if a path is given."""
    if path:
        pathlib.Path(path).write_text(json.dumps(contents, indent=1) + "\n")
