"""A child process that measures the epochs of a training by the command line."""

import itertools
import subprocess
import sys
import time

from benchmarks import measure


def epochs(flags):
    """Returns the seconds before the first epoch, and of each epoch including validation and saving."""
    command = [sys.executable, "-u", "-m", "keras_mart.main", "--mode=train", *flags]
    begins = [time.perf_counter()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        for line in training.stdout:
            if line.startswith("Epoch "):
                begins.append(time.perf_counter())
                measure.send(spans(begins))  # the answer if time runs out before the last epoch
    if training.returncode:
        sys.exit(training.returncode)
    return spans([*begins, time.perf_counter()])


def spans(begins):
    seconds = [end - begin for begin, end in itertools.pairwise(begins)]
    return {"before": seconds[0], "epochs": seconds[1:]}


if __name__ == "__main__":
    measure.serve(epochs)
