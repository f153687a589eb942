"""Type aliases of the public interface. To a type checker, the classes of Keras and TensorFlow are `Any`."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

Tensor: TypeAlias = tf.Tensor  # the return type of functions of tensors
ArrayLike: TypeAlias = np.ndarray | tf.Tensor | Sequence  # the argument type of functions of tensors
Data: TypeAlias = tf.data.Dataset | tuple[ArrayLike, ...]  # (images, labels) batches, or arrays of both
Scalar: TypeAlias = float | tf.Tensor  # a Python number, or a tensor in a traced step
Seed: TypeAlias = int | ArrayLike | None  # `None` draws a new one
Shape: TypeAlias = tf.TensorShape | Sequence[int | None]
ImageFunction: TypeAlias = Callable[[tf.Tensor], tf.Tensor]  # maps images to logits, or to an objective's values
