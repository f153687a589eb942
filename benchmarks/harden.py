"""Measures `keras_mart.harden` on an ordinary Keras classifier: python -m benchmarks.harden --dataset=npz:cifar10.npz

The classifier is MobileNetV2 for images of 64x64 in [-1, 1], with a softmax at its end, trained only with Keras on the
data enlarged to that size. `--classifier` is its file, which is created if it does not exist. `harden` then trains it
further on the data in their original size, with epsilon 4/255, and AutoAttack evaluates both on random test images.
"""

import argparse
import fractions
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

import keras_mart as km

SIZE, BATCH = 64, 128
# Keras's own momentum, 0.999, is too slow for a few epochs.
BATCH_NORM_MOMENTUM = 0.97


def classifier(dataset, classes, epochs):
    """Trains the network to be hardened."""
    network = keras.applications.MobileNetV2(input_shape=(SIZE, SIZE, 3), weights=None, classes=classes)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
    data = km.datasets.load(dataset, "train", batch_size=BATCH, augment="crop_flip")
    data = data.map(lambda images, labels: (2 * tf.image.resize(images, (SIZE, SIZE)) - 1, labels))
    steps = epochs * int(data.cardinality())
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - steps // 10, warmup_target=0.1, warmup_steps=steps // 10)
    network.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True), "sparse_categorical_crossentropy",
        metrics=["accuracy"], jit_compile=km.distribution.prefers_xla(),
    )  # fmt: skip
    network.fit(data, epochs=epochs, verbose=2)
    return network


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="npz:cifar10.npz")
    parser.add_argument("--classifier", type=pathlib.Path, default=pathlib.Path("classifier.keras"))
    parser.add_argument("--natural_epochs", type=int, default=8)
    parser.add_argument(
        "--images", type=int, default=45000, help="training images in an epoch of `harden`, different in each"
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--epsilon", type=fractions.Fraction, default=fractions.Fraction(4, 255))
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--measured", type=int, default=1000, help="test images for PGD-20")
    parser.add_argument(
        "--autoattack", type=int, default=200, help="test images for AutoAttack, the first of --measured"
    )
    flags = parser.parse_args()

    keras.utils.set_random_seed(0)
    if not flags.classifier.exists():
        classifier(flags.dataset, km.datasets.describe(flags.dataset).num_classes, flags.natural_epochs).save(
            flags.classifier
        )
    network = keras.saving.load_model(flags.classifier)
    train = km.datasets.load(flags.dataset, "train", batch_size=BATCH, augment="crop_flip").take(flags.images // BATCH)
    validation = km.datasets.load(flags.dataset, "validation", batch_size=BATCH).take(8)
    chosen = np.random.default_rng(0).permutation(km.datasets.describe(flags.dataset).num_examples["test"])
    test = km.datasets.load_examples(flags.dataset, "test", chosen[: flags.measured])

    threat = km.Linf(float(flags.epsilon))
    rate = {} if flags.learning_rate is None else {"learning_rate": flags.learning_rate}
    start = time.perf_counter()
    hardened = km.harden(
        network, train, validation, test=test, threat=threat, epochs=flags.epochs, preprocessing="tf", verbose=2, **rate
    )
    minutes, cpu_minutes = (time.perf_counter() - start) / 60, time.process_time() / 60
    print(
        f"{hardened}\nharden took {minutes:.1f} minutes; CPU time since the start: {cpu_minutes:.1f} minutes",
        flush=True,
    )
    start = time.perf_counter()
    few = tuple(each[: flags.autoattack] for each in test)
    before, _ = km.networks.adapted(network, few[0].shape[1:], preprocessing="tf")
    for name, model in (("before", before), ("after", hardened.model)):
        print(f"\n{name}\n{km.evaluate(model, few, {'autoattack': km.AutoAttack(threat)}, verbose=2)}", flush=True)
    print(f"AutoAttack took {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
