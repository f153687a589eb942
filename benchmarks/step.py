"""A child process: the training steps of one method on one network, as Keras's own loop runs them."""

import contextlib
import time

import keras
import numpy as np
import tensorflow as tf

import keras_mart as km
from benchmarks import measure, networks, plain, timeline
from keras_mart import distribution, folding
from keras_mart.methods import METHODS

EPSILON = 8 / 255
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
LOGICAL_GPU = 16 * 1024  # MiB of memory of each part of a GPU


class Clock(keras.callbacks.Callback):
    """Notes when each step ended, and its epoch's mean loss so far."""

    def __init__(self):
        super().__init__()
        self.ends, self.losses = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))  # a GPU is done only when the result is there
        self.ends.append(time.perf_counter())


def peak_memory():
    """Bytes: the largest resident set so far; where there is a GPU, the most of its memory."""
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return measure.resident()


def method_model(method, network, attack, num_examples):
    """The method of the package round a network, with its default arguments."""
    if method == "standard":
        return km.Standard(network, seed=0)
    # What MMA asks for besides.
    options = {"num_examples": num_examples, "max_epsilon": 4 * EPSILON} if method == "mma" else {}
    return METHODS[method](network, attack, seed=0, **options)


def compiled_model(variant, method, network, batch_size, attack_steps, jit_compile="auto", accumulate=1):
    """A model ready to fit, and its costs for each image."""
    attack = km.PGD(km.Linf(EPSILON), steps=attack_steps, step_size=EPSILON / 4, start="gaussian")
    model = method_model(method, networks.build(network), attack, batch_size)
    flops = networks.training_flops(method, model)
    if variant == "plain":
        model = plain.Plain(method, plain.keras_only(model.network), attack, WEIGHT_DECAY)
        model.compile(keras.optimizers.SGD(LEARNING_RATE, MOMENTUM))
    else:
        optimizer = km.optimizers.SGD(LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        model.compile(optimizer, jit_compile=jit_compile, accumulate=accumulate)
    return model, flops


def batches(model, batch_size, steps):
    """Seeded random images, made batch by batch so that they take no memory; with indices for who asks for them."""
    shape, index = model.network.input_shape[1:], tf.range(batch_size)

    def batch(number):
        seed = tf.stack([tf.constant(0, "int64"), number])
        images = tf.random.stateless_uniform([batch_size, *shape], seed)
        labels = tf.random.stateless_uniform([batch_size], seed, maxval=model.network.output_shape[-1], dtype="int32")
        return ((images, index), labels) if getattr(model, "needs_index", False) else (images, labels)

    return tf.data.Dataset.range(steps).map(batch).prefetch(1)


def attack_seconds(model, data, times):
    """The times that the attack of a training step takes by itself, compiled before."""
    attack = tf.function(model.perturb, autograph=False, jit_compile=distribution.prefers_xla())
    images, labels = next(iter(data))
    images, index = images if isinstance(images, tuple) else (images, None)
    seconds = []
    for _ in range(1 + times):
        begin = time.perf_counter()
        tf.nest.flatten(attack(images, labels, tf.constant([0, 1]), index))[0].numpy()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def replicated(replicas):
    """A scope in which a model has so many replicas, on logical devices of the one device there is."""
    if replicas == 1:
        return contextlib.nullcontext()
    gpus = tf.config.list_physical_devices("GPU")
    part = tf.config.LogicalDeviceConfiguration(memory_limit=LOGICAL_GPU if gpus else None)
    tf.config.set_logical_device_configuration((gpus or tf.config.list_physical_devices("CPU"))[0], [part] * replicas)
    return distribution.strategy("mirrored").scope()


def training(
    variant, method, network, precision, batch_size, attack_steps, steps,
    jit_compile="auto", replicas=1, traced=0, attack_alone=True, accumulate=1,
):  # fmt: skip
    """Seconds of the first step, of each of the others and of their attack; bytes; operations for each image.

    Args:
        replicas: the batch is divided among so many logical devices.
        traced: the number of steps, after those that are timed, of which the longest operations are listed.
        attack_alone: whether the attack is timed by itself.
        accumulate: the number of parts in which a step takes its batch; the attack is timed on one, and multiplied.
    """
    scope = replicated(replicas)
    imported = peak_memory()
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    if variant == "unfolded":
        folding.disable()
    with scope:
        model, flops = compiled_model(variant, method, network, batch_size, attack_steps, jit_compile, accumulate)
    data, clock = batches(model, batch_size, 1 + steps), Clock()
    begin = time.perf_counter()
    model.fit(data, verbose=0, callbacks=[clock])
    found = {"first": clock.ends[0] - begin, "steps": list(np.diff(clock.ends)), "losses": clock.losses}
    found |= {"attack": [0.0], "memory": peak_memory() - imported, **flops}
    measure.say(found)  # what follows may fail
    if attack_alone and flops["attack_flops"]:
        part = batches(model, -(-batch_size // accumulate), 1)
        found["attack"] = [accumulate * seconds for seconds in attack_seconds(model, part, steps)]
    if traced:
        traced_data = batches(model, batch_size, traced)
        found["trace"] = timeline.traced(lambda: model.fit(traced_data, verbose=0, callbacks=[Clock()]))
    return found


if __name__ == "__main__":
    measure.answer(training)
