"""Fixtures and helpers of several test files."""

import gc
import inspect
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

# Graphs are many objects: at Python's threshold of 700 new ones, looking for garbage takes 4% of the time.
gc.set_threshold(50_000, 5, 5)
# XLA optimises its programs as always, but LLVM compiles them without optimising: tests run each only a few times.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Two logical CPU devices, for the tests of distribution; everything else runs on the first.
CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def two_replicas():
    """A strategy over both devices; one for the session, since the collectives of two strategies collide."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def linear_network(weights, bias, shape=None, **options):
    """Returns a network with logits images @ weights + bias, for images of [values] or of `shape`."""
    weights, bias = np.asarray(weights, "float32"), np.asarray(bias, "float32")
    dense = keras.layers.Dense(len(bias), **options)
    network = keras.Sequential([keras.Input(shape or (len(weights),)), keras.layers.Flatten(), dense])
    dense.set_weights([weights, bias])
    return network


def conv_network(shape=(6, 6, 1), classes=3):
    """Returns a functional network with seeded weights, BatchNormalization and Dropout."""
    keras.utils.set_random_seed(0)
    images = keras.Input(shape)
    features = keras.layers.Conv2D(4, 3, strides=2)(images)
    features = keras.layers.ReLU()(keras.layers.BatchNormalization()(features))
    features = keras.layers.Dropout(0.5)(keras.layers.Flatten()(features))
    return keras.Model(images, keras.layers.Dense(classes)(features))


def images_and_labels(examples=8, shape=(6, 6, 1), classes=3, low=0.0, high=1.0):
    """Returns seeded float32 images in [low, high] and integer labels."""
    random = np.random.default_rng(0)
    images = random.uniform(low, high, size=(examples, *shape)).astype("float32")
    return images, random.integers(classes, size=examples)


class Plain(keras.Model):
    """A subclassed network as users often write it: without a config and without `training`; 3 classes."""

    def __init__(self):
        super().__init__()
        self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(3)

    def call(self, images):
        return self.dense(self.flatten(images))


class Counting(keras.layers.Layer):
    """Counts how often Python calls it: once for each trace and each eager call."""

    calls = 0

    def call(self, images):
        Counting.calls += 1
        return images


def supported(cases):
    """Returns {name: case} without those of batch renormalization where this Keras lacks it (before 3.14)."""
    lacks = "renorm" not in inspect.signature(keras.layers.BatchNormalization).parameters
    return {name: case for name, case in cases.items() if not (lacks and "renorm" in name)}


def relative(got, expected):
    """Returns the norm of the error over the norm of the expected value."""
    got, expected = np.asarray(got, "float64"), np.asarray(expected, "float64")
    return np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)
