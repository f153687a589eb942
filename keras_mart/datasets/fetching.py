"""Images for `tf.data`, which are fetched by Python, and what comes of its errors and of the end of the process."""

import atexit
import re
import threading
import time

import tensorflow as tf

# Seconds without a call after which nothing more is asked for, and after which the process ends all the same.
QUIET, PATIENCE = 0.1, 10.0
# What an error of TensorFlow's says of a ValueError of Python's behind it.
BEHIND = re.compile(r"ValueError: (.*?)\nTraceback \(most recent call last\)", re.DOTALL)


def fetch(images, index, shape):
    """Returns `images[index]` in a `tf.data` function; not copied into TensorFlow beforehand, as a constant would be.

    Args:
        images: what can be indexed: array, `Images` or `Rows`.
        index: integer tensor.
        shape: of an image, as far as it is known.
    """
    return tf.ensure_shape(
        tf.numpy_function(_calls.of(images.__getitem__), [index], images.dtype), [*index.shape, *shape]
    )


def refusal(error):
    """Returns the ValueError that is behind an error of TensorFlow's, as of a damaged file, or `None`."""
    found = BEHIND.search(str(error))
    return found and ValueError(found[1])


class _Calls:
    """The calls of Python out of `tf.data`'s threads, none of which may be under way when the interpreter ends.

    Such a thread would wait for the interpreter, and whatever ends the pipeline for the thread. But a pipeline that
    nobody reads from comes to rest when its buffers are full.
    """

    def __init__(self):
        self.lock, self.running, self.last, self.ending = threading.Lock(), 0, -QUIET, False
        atexit.register(self.settle)

    def of(self, function):
        def call(*arguments):
            if self.ending:
                raise RuntimeError("The process ends")
            self.count(1)
            try:
                return function(*arguments)
            finally:
                self.count(-1)

        return call

    def count(self, more):
        with self.lock:
            self.running += more
            self.last = time.monotonic()

    def settle(self):
        self.ending = True
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and (self.running or time.monotonic() < self.last + QUIET):
            time.sleep(QUIET / 10)


_calls = _Calls()
