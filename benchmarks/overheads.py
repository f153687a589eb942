"""A child process that measures Keras's progress bar and the package's input pipelines against a short training step.

The network is `small_cnn` in float32: relative to the longer steps of other networks, the overheads are smaller.
"""

import contextlib
import io
import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np

import keras_mart as km
from benchmarks import measure, step

NETWORK = "small_cnn"
TIMES = 5
STEPS = 50  # in a fit, over which the cost of fit itself is spread
CIFAR_LIKE, CIFAR_SHAPE = 10000, (32, 32, 3)


class Terminal(io.StringIO):
    """Discards the progress bar's output but looks like a terminal, so that it is written as often as on one."""

    def isatty(self):
        return True


def seconds_of(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def fits(model, data):
    """Returns the median seconds of `fit` without and with the progress bar, in alternating order."""

    def fit(verbose):
        with contextlib.redirect_stdout(Terminal()):
            return seconds_of(lambda: model.fit(data, verbose=verbose))

    fit(1)  # compiles
    seconds = {0: [], 1: []}
    for number in range(2 * TIMES):
        for verbose in (number % 2, 1 - number % 2):
            seconds[verbose].append(fit(verbose))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def batch_seconds(dataset):
    """Returns the seconds to read a batch with nothing else running: the median over epochs after a first one."""
    epochs = [seconds_of(lambda: list(dataset)) for _ in range(1 + TIMES)]
    return statistics.median(epochs[1:]) / len(dataset)


def cifar_like(folder):
    """Writes random data as large as a fifth of CIFAR-10's training set, and returns the dataset's name."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (CIFAR_LIKE, *CIFAR_SHAPE), dtype=np.uint8)
    labels = random.integers(0, 10, CIFAR_LIKE)
    path = pathlib.Path(folder) / "images.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    return f"npz:{path}"


def overheads(method, batch_size, attack_steps):
    """Returns the milliseconds of a step and of its overheads."""
    keras.utils.set_random_seed(0)
    model, _ = step.compiled_model("keras_mart", method, NETWORK, batch_size, attack_steps)
    silent, with_bar = fits(model, step.batches(model, batch_size, STEPS))
    digits = batch_seconds(km.datasets.load("digits", "train", batch_size=batch_size))
    with tempfile.TemporaryDirectory() as folder:
        cifar = km.datasets.load(cifar_like(folder), "train", batch_size=batch_size, augment="crop_flip")
    rows = {
        "progress bar, a step": (with_bar - silent) / STEPS,
        "digits, a batch": digits,
        "32x32x3 in memory, cropped and flipped, a batch": batch_seconds(cifar),
    }
    return {
        "step": 1000 * silent / STEPS,
        "of": f"a step of {method} on {NETWORK}, batch {batch_size}, {1000 * silent / STEPS:.1f} ms",
        "rows": [{"name": name, "milliseconds": 1000 * seconds} for name, seconds in rows.items()],
    }


if __name__ == "__main__":
    measure.serve(overheads)
