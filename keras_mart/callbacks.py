"""Keras callbacks that measure robust accuracy during training, and write TensorBoard scalars without its package."""

import errno
import os
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_mart import checks
from keras_mart.attacks import Attack
from keras_mart.evaluation import check, evaluate
from keras_mart.typing import Data


class RobustAccuracy(keras.callbacks.Callback):
    """Adds the accuracy under attacks to the logs, as `val_<name>_accuracy`.

    Measures after the first epoch, after every `every`-th epoch and after the last, which is the last of `epochs` or
    one in which a callback earlier in the list has stopped training. In other epochs the key is missing, since NaN
    would become `ModelCheckpoint`'s best value. Callbacks that monitor the key must come later in the list.

    Args:
        data: as in `keras_mart.evaluate`: batches of (images, labels), or a pair of arrays. Use held-out training
            data: a checkpoint chosen on the test set makes the test result worthless.
        attacks: dictionary from names to attacks.
        every: number of epochs between measurements.
        batch_size: number of examples attacked at once.
        seed: integer; the same seed is used in every epoch, so that epochs are comparable.
        verbose: 0 for silent, 1 for a progress line.
        precision: `None` evaluates the network in its training precision, which is the fastest; "float32" as
            `keras_mart.evaluate` does.

    Raises:
        ValueError: `every` is not positive, or there is no attack; before training, if the arrays or the first batch
            show that the data or attacks cannot be evaluated.
    """

    def __init__(
        self,
        data: Data,
        attacks: Mapping[str, Attack],
        every: int = 1,
        *,
        batch_size: int = 128,
        seed: int = 0,
        verbose: int = 1,
        precision: str | None = None,
    ) -> None:
        super().__init__()
        checks.positive_integer(every, "every")
        if not attacks:
            raise ValueError("`attacks` must name at least one attack. Received: none.")
        self.data = data
        self.attacks = attacks
        self.every = every
        self.batch_size = batch_size
        self.seed = seed
        self.verbose = verbose
        self.precision = precision

    def on_train_begin(self, logs: Any = None) -> None:
        check(self.model, self.data, self.attacks)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not (is_measured(epoch + 1, self.params.get("epochs"), self.every) or self.model.stop_training):
            return
        table = evaluate(
            self.model, self.data, self.attacks, batch_size=self.batch_size, seed=self.seed, verbose=self.verbose,
            precision=self.precision,
        )  # fmt: skip
        for name in self.attacks:
            logs[f"val_{name}_accuracy"] = table[name]


def is_measured(epoch, epochs, every):
    """Returns whether `RobustAccuracy` measures after this epoch, counted from 1."""
    return epoch in (1, epochs) or epoch % every == 0


class EpochScalars(keras.callbacks.Callback):
    """Writes the logs of each epoch as TensorBoard scalars.

    `keras.callbacks.TensorBoard` requires the tensorboard package, which TensorFlow no longer installs.

    Args:
        directory: folder of the event file.
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = str(directory)

    def on_train_begin(self, logs=None):
        self._writer = tf.summary.create_file_writer(self.directory)

    def on_epoch_end(self, epoch, logs=None):
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
        with self._writer.as_default():
            for name, value in logs.items():
                tf.summary.write(f"epoch/{name}", tf.cast(value, "float32"), step=epoch, metadata=metadata)
        try:
            self._writer.flush()
        except tf.errors.ResourceExhaustedError as error:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.directory) from error

    def on_train_end(self, logs=None):
        self._writer.close()
