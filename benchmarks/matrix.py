"""A child process that measures a large matrix product, the machine's peak rate in TensorFlow."""

import time

import keras
import tensorflow as tf

from benchmarks import measure

SIZE = 4096
TIMES = 5


def rate(precision):
    """Returns floating-point operations per second, the best of several products in the layers' compute dtype."""
    dtype = keras.dtype_policies.get(precision).compute_dtype
    left, right = (tf.cast(tf.random.stateless_normal([SIZE, SIZE], [0, seed]), dtype) for seed in range(2))
    seconds = []
    for _ in range(1 + TIMES):  # the first is slower
        begin = time.perf_counter()
        tf.matmul(left, right)[0, 0].numpy()  # waits for a GPU
        seconds.append(time.perf_counter() - begin)
    return {"flops": 2 * SIZE**3 / min(seconds)}


if __name__ == "__main__":
    measure.serve(rate)
