"""Keras callbacks: robust accuracy during training, and TensorBoard's curves without its package."""

import errno
import os

import keras
import tensorflow as tf

from keras_mart import checks
from keras_mart.evaluation import check, evaluate


class RobustAccuracy(keras.callbacks.Callback):
    """Puts the accuracy under attacks into the logs, as `val_<name>_accuracy`.

    It measures after the first epoch, after every `every`-th and after the last: the last of `epochs`, or one in which
    a callback that stands before it in the list has stopped the training. In other epochs the key is left
    out, never NaN, which would spoil `ModelCheckpoint`'s best value for ever. Callbacks that monitor the key stand
    behind it in the list.

    Args:
        data: as in `keras_mart.evaluate`: batches of (images, labels), or a pair of arrays. Use held-out training
            data: a checkpoint chosen on the test set makes the test result worthless.
        attacks: name to attack.
        every: number of epochs between measurements.
        batch_size: number of examples that are attacked at once.
        seed: integer; the same in every epoch, so that epochs compare.
        verbose: 0 for silence, 1 for a line of progress.
        precision: `None` judges the network in the precision that it is trained in, which is the fastest; "float32" as
            `keras_mart.evaluate` does.

    Raises:
        ValueError: `every` not positive, or no attack; before training, data or attacks that cannot be evaluated, as
            far as arrays, or else the first batch, tell.
    """

    def __init__(self, data, attacks, every=1, *, batch_size=128, seed=0, verbose=1, precision=None):
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

    def on_train_begin(self, logs=None):
        check(self.model, self.data, self.attacks)

    def on_epoch_end(self, epoch, logs=None):
        if not (is_measured(epoch + 1, self.params.get("epochs"), self.every) or self.model.stop_training):
            return
        table = evaluate(
            self.model, self.data, self.attacks, batch_size=self.batch_size, seed=self.seed, verbose=self.verbose,
            precision=self.precision,
        )  # fmt: skip
        for name in self.attacks:
            logs[f"val_{name}_accuracy"] = table[name]


def is_measured(epoch, epochs, every):
    """Whether `RobustAccuracy` measures after an epoch, counted from 1: the first, every so many, and the last."""
    return epoch in (1, epochs) or epoch % every == 0


class EpochScalars(keras.callbacks.Callback):
    """Writes the logs of each epoch as TensorBoard scalars.

    `keras.callbacks.TensorBoard` needs the tensorboard package, which TensorFlow no longer brings along, only to
    write such values.

    Args:
        directory: where the event file goes.
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
