"""--mode=train: fits a method and leaves its checkpoints and history in the run directory."""

import sys
import warnings

import keras

from keras_mart.callbacks import EpochScalars, RobustAccuracy
from keras_mart.cli import build
from keras_mart.cli.flags import FLAGS
from keras_mart.methods import METHODS

# The attack that chooses the best checkpoint, on validation data.
VALIDATION_ATTACK = "pgd20"


def train(method, directory, strategy):
    """Trains from the start, or from the last checkpoint where there is one."""
    keras.utils.set_random_seed(FLAGS.seed)  # first of all: tf.data's random numbers follow it
    training = build.data("train", with_index=METHODS[method].needs_index)
    validation = build.data("validation")
    with strategy.scope():
        model = directory.load(directory.last) if directory.last.exists() else build.model(method)
    done = int(model.step.numpy()) // int(training.cardinality())
    if done >= FLAGS.epochs:
        print(f"\n{directory.path}: {method} is trained already, epochs done: {done}")
        return
    devices = f" on {strategy.num_replicas_in_sync} devices" if strategy.num_replicas_in_sync > 1 else ""
    print(f"\n{directory.path}: training {method}{devices}, epochs {done + 1} to {FLAGS.epochs}", flush=True)
    directory.rewind(done)
    warnings.filterwarnings("ignore", "Can save best model only with")  # where --validate_every leaves an epoch out
    model.fit(
        training,
        validation_data=validation,
        validation_freq=[epoch for epoch in range(1, FLAGS.epochs + 1) if _validates(epoch)],
        epochs=FLAGS.epochs,
        initial_epoch=done,
        callbacks=_callbacks(model, validation, directory),
        shuffle=False,  # the data shuffle themselves
        verbose=1 if sys.stdout.isatty() else 2,  # a line for each epoch where there is no terminal
    )


def _validates(epoch):
    """As RobustAccuracy does: after the first epoch, every so many, and the last."""
    return epoch in (1, FLAGS.epochs) or epoch % FLAGS.validate_every == 0


def _callbacks(model, validation, directory):
    """In the order in which they must run: measure, choose, record, and save last what the others have recorded."""
    monitor = f"val_{VALIDATION_ATTACK}_accuracy" if model.has_adversary else "val_natural_accuracy"
    best = max((float(row[monitor]) for row in directory.rows() if row.get(monitor)), default=None)
    return [
        keras.callbacks.LearningRateScheduler(lambda epoch, _: build.learning_rate(epoch)),
        RobustAccuracy(validation, build.attacks([VALIDATION_ATTACK]), FLAGS.validate_every, verbose=0),
        keras.callbacks.ModelCheckpoint(
            directory.unfinished(directory.best), monitor, mode="max", save_best_only=True, initial_value_threshold=best
        ),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: directory.add_row(epoch + 1, logs)),
        EpochScalars(directory.tensorboard),
        keras.callbacks.ModelCheckpoint(directory.unfinished(directory.last)),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: directory.publish()),
    ]
