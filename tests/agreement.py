"""Trains methods a little and writes what came out, so that runs on other devices and workers can be compared.

    python tests/agreement.py OUT STRATEGY CASE...

OUT-<worker>.npz gets the weights, the logs and a table of each case; STRATEGY is "replicas" for two devices of one
process, or what `distribution.strategy` takes.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

import keras_mart as km
from keras_mart.methods import METHODS

CASES = (*METHODS, "alp-original", "clp-original", "mart-batch-norm", "mart-average", "mart-awp", "mma-mix")
TAUGHT = ("hat", "rslad")
SHAPE, CLASSES, EXAMPLES = (6, 6, 1), 3, 66


def main(out, name, *cases):
    if name == "replicas":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        name = "mirrored"
    strategy = km.distribution.strategy(name)
    replace_random_numbers()
    results = {}
    for case in cases or CASES:
        results.update({f"{case}/{key}": value for key, value in run(case, strategy).items()})
    np.savez(f"{out}-{km.distribution.worker(strategy)[0]}.npz", **results)


def replace_random_numbers(setattr=setattr):
    """Every random start or noise becomes one fixed function of the image, the same wherever the image lies."""

    def start(threat, images, seed, epsilon=None):
        return threat.project(images + 0.05 * keras.ops.cos(50 * images), images, epsilon)

    setattr(km.Linf, "sample", start)
    setattr(tf.random, "stateless_normal", lambda shape, seed, **_: 0.02 * tf.ones(shape))


def run(case, strategy):
    method, _, variant = case.partition("-")
    with strategy.scope():
        model = build(method, variant)
    random = np.random.default_rng(0)
    images = random.uniform(size=(EXAMPLES, *SHAPE)).astype("float32")
    labels, weights = random.integers(CLASSES, size=EXAMPLES), np.linspace(0, 2, EXAMPLES).astype("float32")
    # 20 steps: batches of 7, which no number of workers divides, and a last one of 3, which leaves some with nothing.
    batch = 6 if case == "mart-batch-norm" else 7  # parts of equal size: their statistics are their own
    if case == "clp-original":  # whose pairs stay together only where each worker's part is an even number
        images, labels, weights, batch = images[:60], labels[:60], weights[:60], 12
    inputs = (images, np.arange(len(images))) if model.needs_index else images
    data = tf.data.Dataset.from_tensor_slices((inputs, labels, weights)).batch(batch)
    if variant == "mix":
        data = km.datasets.mix(data, (images[::-1], labels), fraction=0.3, weight=0.5, epoch=lambda: 0)
    epochs = -(-20 // int(data.cardinality()))
    # In a strategy's own words, as users have them: AutoShardPolicy.AUTO.
    history = model.fit(data, epochs=epochs, validation_data=(images[:23], labels[:23]), verbose=0).history
    table = km.evaluate(
        model, (images, labels), {"pgd": model.attack or km.PGD(km.Linf(0.1), 2)}, batch_size=9, verbose=0
    )
    return {
        **{f"weights/{number}": weight for number, weight in enumerate(model.get_weights())},
        **{f"logs/{name}": values for name, values in history.items()},
        **{f"table/{name}": predicted for name, predicted in table.predictions.items()},
    }


def teacher():
    """A network that has other weights than those that it teaches."""
    initializer = keras.initializers.RandomNormal(seed=2)
    head = keras.layers.Dense(CLASSES, kernel_initializer=initializer)
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), head])


def build(method, variant):
    keras.utils.set_random_seed(0)
    images = keras.Input(SHAPE)
    features = keras.layers.Conv2D(4, 3, kernel_regularizer="l2")(images)
    if variant == "batch-norm":
        features = keras.layers.BatchNormalization()(features)
    network = keras.Model(images, keras.layers.Dense(CLASSES)(keras.layers.Flatten()(keras.layers.ReLU()(features))))
    options = {"seed": 1}
    if METHODS[method].has_adversary:
        options["attack"] = km.PGD(km.Linf(0.1), steps=3, step_size=0.03)
    if method in TAUGHT:
        options["teacher"] = teacher()
    if variant == "original":
        options["form"] = variant
    if variant == "average":
        options["weight_average"] = 0.9
    if variant == "awp":
        options["weight_perturbation"] = km.AWP(0.01, warmup=1)
    if METHODS[method].needs_index:
        options |= {"num_examples": EXAMPLES, "max_epsilon": 0.2, "min_margin": 0.05}
    if variant == "mix":
        options["num_examples"] *= 2
    model = METHODS[method](network, **options)
    model.compile(km.optimizers.SGD(0.05, momentum=0.9, weight_decay=1e-3))
    return model


if __name__ == "__main__":
    main(*sys.argv[1:])
