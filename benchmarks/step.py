"""A child process that measures training steps of one method on one network in Keras's own loop."""

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
LOGICAL_GPU = 16 * 1024  # MiB of memory of a logical GPU


class Clock(keras.callbacks.Callback):
    """Records the end of each step and the epoch's mean loss so far."""

    def __init__(self):
        super().__init__()
        self.ends, self.losses = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))  # waits for a GPU
        self.ends.append(time.perf_counter())


def peak_memory():
    """Returns the peak memory in bytes: the GPU's if there is one, otherwise the resident set of the process."""
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return measure.resident()


def method_model(method, network, attack, num_examples):
    """Wraps a network with a method of the package, with default arguments."""
    if method == "standard":
        return km.Standard(network, seed=0)
    options = {"num_examples": num_examples, "max_epsilon": 4 * EPSILON} if method == "mma" else {}
    return METHODS[method](network, attack, seed=0, **options)


def compiled_model(variant, method, network, batch_size, attack_steps, jit_compile="auto", accumulate=1):
    """Returns a compiled model, and its operations per image."""
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
    """Returns seeded random images, generated batch by batch to save memory; with indices if the model needs them."""
    shape, index = model.network.input_shape[1:], tf.range(batch_size)

    def batch(number):
        seed = tf.stack([tf.constant(0, "int64"), number])
        images = tf.random.stateless_uniform([batch_size, *shape], seed)
        labels = tf.random.stateless_uniform([batch_size], seed, maxval=model.network.output_shape[-1], dtype="int32")
        return ((images, index), labels) if getattr(model, "needs_index", False) else (images, labels)

    return tf.data.Dataset.range(steps).map(batch).prefetch(1)


def attack_seconds(model, data, times):
    """Returns the seconds of a training step's attack by itself, after a first run that compiles."""
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
    """Returns a scope in which a model has this many replicas, on logical devices of the machine's first device."""
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
    """Returns the seconds of the first step, of later steps and of their attack, peak bytes, and operations per image.

    Args:
        replicas: number of logical devices that share the batch.
        traced: number of steps, after the timed ones, of which the longest operations are listed.
        attack_alone: whether to time the attack by itself.
        accumulate: number of parts of a batch; the attack is timed on one part, and the time multiplied.
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
    measure.send(found)  # the answer if the following fails
    if attack_alone and flops["attack_flops"]:
        part = batches(model, -(-batch_size // accumulate), 1)
        found["attack"] = [accumulate * seconds for seconds in attack_seconds(model, part, steps)]
    if traced:
        traced_data = batches(model, batch_size, traced)
        found["trace"] = timeline.traced(lambda: model.fit(traced_data, verbose=0, callbacks=[Clock()]))
    return found


if __name__ == "__main__":
    measure.serve(training)
