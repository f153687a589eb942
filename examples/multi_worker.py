"""Trains one model on several workers, which are processes on this machine.

    python examples/multi_worker.py --workers=2

On a cluster, each machine calls `train` itself, with TF_CONFIG set or as a task of a Slurm step.
"""

import argparse
import sys

import keras

import keras_mart as km

parser = argparse.ArgumentParser()
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--worker", action="store_true", help="this process is one of the workers")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--output", default="together.keras")
flags = parser.parse_args()


def train():
    strategy = km.distribution.strategy("multiworker")  # must come before any other TensorFlow operation
    print(km.distribution.describe(strategy), flush=True)
    keras.utils.set_random_seed(0)  # gives all workers the same initial weights
    with strategy.scope():
        layers = [keras.layers.Flatten(), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
        network = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        model = km.TRADES(network, km.PGD(km.Linf(0.15), steps=5), beta=6.0)
        model.compile(km.optimizers.SGD(0.1, momentum=0.9))
    data = km.datasets.load("digits", "train", batch_size=64)  # 64 images for all workers together
    model.fit(
        data, validation_data=km.datasets.load("digits", "validation", batch_size=64), epochs=flags.epochs, verbose=2
    )
    if km.distribution.is_chief(strategy):
        model.save(flags.output)


if flags.worker:
    train()
else:
    command = [sys.executable, __file__, "--worker", f"--epochs={flags.epochs}", f"--output={flags.output}"]
    sys.exit(km.launch(command, flags.workers))
