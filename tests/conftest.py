"""What several tests share."""

import pytest
import tensorflow as tf

# Two logical CPU devices, for the tests of distribution; everything else runs on the first.
CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def two_replicas():
    """A strategy over both devices. One for the session: TensorFlow's collectives of two strategies collide."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
