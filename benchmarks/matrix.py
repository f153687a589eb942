"""A child process: the rate of a large matrix product, what the machine can reach at best in TensorFlow."""

import time

import keras
import tensorflow as tf

from benchmarks import measure

SIZE = 4096
TIMES = 5


def rate(precision):
    """Floating-point operations in a second, the best of several products in the precision that layers compute in."""
    dtype = keras.dtype_policies.get(precision).compute_dtype
    left, right = (tf.cast(tf.random.stateless_normal([SIZE, SIZE], [0, seed]), dtype) for seed in range(2))
    seconds = []
    for _ in range(1 + TIMES):  # the first is slower than the rest
        begin = time.perf_counter()
        tf.matmul(left, right)[0, 0].numpy()  # a GPU is done only when the result is there
        seconds.append(time.perf_counter() - begin)
    return {"flops": 2 * SIZE**3 / min(seconds)}


if __name__ == "__main__":
    measure.answer(rate)
