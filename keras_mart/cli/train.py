"""--mode=train: fits a method and leaves its checkpoints and history in the run directory."""

import sys

import keras

from keras_mart.callbacks import EpochScalars, RobustAccuracy
from keras_mart.cli import build
from keras_mart.cli.flags import FLAGS
from keras_mart.methods import METHODS

# The attack that chooses the best checkpoint, on validation data.
VALIDATION_ATTACK = "pgd20"


def train(method, directory, strategy):
    """Trains from the start, or from the last checkpoint where there is one."""
    training = build.data("train", with_index=METHODS[method].needs_index)
    validation = build.data("validation")
    keras.utils.set_random_seed(FLAGS.seed)
    with strategy.scope():
        resumed = directory.last.exists()
        model = directory.load(directory.last) if resumed else build.model(method)
    epochs_done = int(model.step) // int(training.cardinality())
    directory.keep_rows(epochs_done)
    model.fit(
        training,
        validation_data=validation,
        validation_freq=FLAGS.validate_every,
        epochs=FLAGS.epochs,
        initial_epoch=epochs_done,
        callbacks=_callbacks(model, validation, directory),
        shuffle=False,  # the data shuffle themselves
        verbose=1 if sys.stdout.isatty() else 2,  # a line for each epoch where there is no terminal
    )


def _callbacks(model, validation, directory):
    """In the order in which they must run: measure, choose, record, and save last what the others have recorded."""
    monitor = f"val_{VALIDATION_ATTACK}_accuracy" if model.has_adversary else "val_natural_accuracy"
    measured = [float(row[monitor]) for row in directory.rows() if row[monitor] not in ("", "NA")]
    best = max(measured, default=None)
    return [
        keras.callbacks.LearningRateScheduler(lambda epoch, _: build.learning_rate(epoch)),
        RobustAccuracy(validation, build.attacks([VALIDATION_ATTACK]), FLAGS.validate_every, verbose=0),
        keras.callbacks.ModelCheckpoint(
            directory.best, monitor, mode="max", save_best_only=True, initial_value_threshold=best
        ),
        keras.callbacks.CSVLogger(directory.history, append=True),
        EpochScalars(directory.tensorboard),
        keras.callbacks.ModelCheckpoint(directory.last),
    ]
