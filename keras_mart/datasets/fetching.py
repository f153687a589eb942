"""Images for `tf.data`, which Python fetches, and what comes of its errors and of the end of the process."""

import atexit
import re
import threading
import time

import numpy as np
import tensorflow as tf

from keras_mart.datasets.images import release_memory

# Seconds without a call after which nothing more is asked for, and after which the process ends all the same.
QUIET_TIME, MAX_WAIT = 0.1, 10.0
TAG = "keras_mart:"  # in front of the text of a ValueError, in the error that TensorFlow makes of it
REFUSAL = re.compile(rf"\[{TAG}\] \[(.*?)\]$", re.MULTILINE)


def fetch(images, index, shape):
    """Returns `images[index]` in a `tf.data` function; not copied into TensorFlow beforehand, as a constant would be.

    Args:
        images: what can be indexed: array, `LazyImages` or `RowView`.
        index: integer tensor.
        shape: of an image, as far as it is known.

    Raises:
        tf.errors.InvalidArgumentError: when the data are read, for a ValueError. It has the text, but no traceback.
    """
    found, refused = tf.numpy_function(_calls.of(images), [index], [images.dtype, tf.string])
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(refused, ""), [TAG, refused])]):
        return tf.ensure_shape(found, [*index.shape, *shape])


def refusal(error):
    """Returns the ValueError that is behind an error of TensorFlow's, as of a damaged file, or `None`."""
    found = REFUSAL.search(str(error))
    return found and ValueError(found[1].encode().decode("unicode_escape").encode("latin-1").decode())


class _CallTracker:
    """The calls of Python by `tf.data`'s threads, none of which may be under way when the interpreter ends.

    Such a thread would wait for the interpreter, and whatever ends the pipeline for the thread. But a pipeline that
    nobody reads from comes to rest when its buffers are full.
    """

    def __init__(self):
        self.lock, self.running, self.last, self.ending = threading.Lock(), 0, -QUIET_TIME, False
        atexit.register(self.wait_until_idle)

    def of(self, images):
        """Returns a function of an index that returns (images, the text of a ValueError or "")."""

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
    """Black images of the right shape."""
    return np.zeros([*np.shape(index), *(size or 1 for size in images.shape[1:])], images.dtype)


_calls = _CallTracker()
