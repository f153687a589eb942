"""Type aliases of the public interface. To a type checker, the classes of Keras and TensorFlow are `Any`."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

Tensor: TypeAlias = tf.Tensor  # what functions of tensors return
ArrayLike: TypeAlias = np.ndarray | tf.Tensor | Sequence  # what functions of tensors take
Data: TypeAlias = tf.data.Dataset | tuple[ArrayLike, ...]  # (images, labels) batches, or arrays of both
