"""Reading images in Python from `tf.data`, with error messages and a clean end of the process."""

import atexit
import re
import threading
import time

import numpy as np
import tensorflow as tf

from keras_mart.datasets.images import release_memory

# At the end of the process, seconds without a call until the pipelines count as idle, and the longest wait for that.
QUIET_TIME, MAX_WAIT = 0.1, 10.0
TAG = "keras_mart:"  # precedes the message of a ValueError in the TensorFlow error that it becomes
REFUSAL = re.compile(rf"\[{TAG}\] \[(.*?)\]$", re.MULTILINE)


def fetch(images, index, shape):
    """Returns `images[index]` in a `tf.data` function, without copying the images into a TensorFlow constant.

    Args:
        images: array, `LazyImages` or `RowView`.
        index: integer tensor.
        shape: shape of an image, with `None` for unknown sizes.

    Raises:
        tf.errors.InvalidArgumentError: with the message of a ValueError, but no traceback, when the data are read.
    """
    found, refused = tf.numpy_function(_calls.of(images), [index], [images.dtype, tf.string])
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(refused, ""), [TAG, refused])]):
        return tf.ensure_shape(found, [*index.shape, *shape])


def refusal(error: Exception) -> ValueError | None:
    """Returns the ValueError, such as that of a damaged file, that caused a TensorFlow error; `None` if none did."""
    found = REFUSAL.search(str(error))
    if found is None:
        return None
    return ValueError(found[1].encode().decode("unicode_escape").encode("latin-1").decode())


class _CallTracker:
    """Counts the Python calls of `tf.data`'s threads, and waits at exit until there are none.

    A thread in such a call would wait for the interpreter while the shutdown of the pipeline waits for the thread. A
    pipeline that is not read from becomes idle when its buffers are full.
    """

    def __init__(self):
        self.lock, self.running, self.last, self.ending = threading.Lock(), 0, -QUIET_TIME, False
        atexit.register(self.wait_until_idle)

    def of(self, images):
        """Returns a function from an index to (images, message of a ValueError or "")."""

        @tf.autograph.experimental.do_not_convert
        def call(index):
            self.count(1)
            try:
                return (_black_images(images, index) if self.ending else images[index]), ""
            except ValueError as error:
                return _black_images(images, index), str(error)
            finally:
                release_memory(images)
                self.count(-1)

        return call

    def count(self, more):
        with self.lock:
            self.running += more
            self.last = time.monotonic()

    def wait_until_idle(self):
        self.ending = True
        end = time.monotonic() + MAX_WAIT
        while time.monotonic() < end and (self.running or time.monotonic() < self.last + QUIET_TIME):
            time.sleep(QUIET_TIME / 10)


def _black_images(images, index):
    """Returns zeros of the shape and dtype of `images[index]`, with 1 for unknown sizes."""
    return np.zeros([*np.shape(index), *(size or 1 for size in images.shape[1:])], images.dtype)


_calls = _CallTracker()
