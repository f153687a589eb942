"""--mode=train: trains a method and writes its checkpoints and history to the run directory."""

import datetime
import sys
import time

import keras

from keras_mart import distribution
from keras_mart.callbacks import EpochScalars, is_measured
from keras_mart.cli import build, state
from keras_mart.cli.flags import FLAGS
from keras_mart.cli.optimizer import schedule
from keras_mart.cli.saving import Progress, Saver
from keras_mart.cli.stopping import Requests, Stopped, say


def train(method, directory, strategy):
    """Trains from the start or from the newest saved state; the result equals that of an uninterrupted run."""
    keras.utils.set_random_seed(FLAGS.seed)
    with strategy.scope():
        model = build.model(method)
    with Requests() as requests:
        saver = _saver(model, directory, requests)
        if saver.progress.epoch >= FLAGS.epochs:
            print(f"{directory.path}: {method} is already trained, epochs done: {saver.progress.epoch}")
            return
        print(f"{directory.path}: training {method}{_where(saver, strategy)}", flush=True)
        try:
            _fit(model, saver, directory)
        except Stopped:
            saver.save()
            if distribution.is_chief(strategy):
                say(f"{directory.path}: saved after step {saver.number()}")
            raise


def _fit(model, saver, directory):
    validation = build.data("validation")
    rate = schedule(saver.steps)

    def log_rate(epoch, logs):  # the rate of the epoch's last step
        logs["learning_rate"] = float(rate(max(int(model.optimizer.iterations.numpy()) - 1, 0)))

    # The order matters: the saver must run last.
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=log_rate), EpochLines(FLAGS.epochs)]
    if distribution.is_chief(model.distribute_strategy):
        callbacks.append(EpochScalars(directory.tensorboard))
    callbacks.append(saver)

    def fit(first_batch=0):
        model.fit(
            build.training_data(model, lambda: saver.progress.epoch, first_batch),
            validation_data=validation,
            validation_freq=[epoch for epoch in range(1, FLAGS.epochs + 1) if _validates(epoch)],
            epochs=FLAGS.epochs,
            initial_epoch=saver.progress.epoch,
            callbacks=callbacks,
            shuffle=False,  # the dataset shuffles
            verbose=1 if sys.stdout.isatty() else 0,  # without a terminal, `EpochLines` prints the metrics
        )

    if saver.progress.step == saver.steps:
        _end_epoch(model, saver.progress.epoch, validation, callbacks)
    elif saver.progress.step:
        saver.last_epoch = saver.progress.epoch
        fit(saver.progress.step)
        saver.last_epoch = None
    if saver.progress.epoch < FLAGS.epochs:
        fit()


class EpochLines(keras.callbacks.Callback):
    """Prints the time left: on a terminal above Keras's progress bar, elsewhere in a line per epoch with its logs."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs, self.ends = epochs, []

    def on_train_begin(self, logs=None):
        self.ends = [time.perf_counter()]

    def on_epoch_begin(self, epoch, logs=None):
        if sys.stdout.isatty() and len(self.ends) > 1:
            print(self._left(epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(time.perf_counter())
        if not sys.stdout.isatty():
            parts = [f"Epoch {epoch + 1}/{self.epochs}", f"{self.ends[-1] - self.ends[-2]:.1f}s"]
            parts += [self._left(epoch + 1)] if epoch + 1 < self.epochs else []
            print(" - ".join([*parts, *(f"{name}: {value:.4g}" for name, value in logs.items())]), flush=True)

    def _left(self, done):
        """Returns the time left after `done` epochs."""
        # Without the first epoch, which includes compiling, as soon as there is another.
        paced = self.ends[1:] if len(self.ends) > 2 else self.ends
        pace = (paced[-1] - paced[0]) / (len(paced) - 1)
        return f"{datetime.timedelta(seconds=round((self.epochs - done) * pace))} left"


def _end_epoch(model, epoch, validation, callbacks):
    """Ends an epoch as `fit` does after its last step, with the metrics in their current state."""
    container = keras.callbacks.CallbackList(callbacks, model=model, epochs=FLAGS.epochs)
    container.on_train_begin()
    container.on_epoch_begin(epoch)
    logs = model.get_metrics_result()
    if _validates(epoch + 1):
        found = model.evaluate(validation, return_dict=True, verbose=0, callbacks=container)
        logs.update({f"val_{name}": value for name, value in found.items()})
    container.on_epoch_end(epoch, logs)
    container.on_train_end()


def _saver(model, directory, requests):
    """Restores the newest saved state of the model, and returns the `Saver`."""
    strategy = model.distribute_strategy
    checkpoint, damaged = directory.checkpoints.newest()
    for message in damaged:
        print(message)
    numbers = distribution.all_gather(-1 if checkpoint is None else checkpoint.number, strategy)
    if len(set(numbers)) > 1:
        raise ValueError(f"All workers must share one run directory. Received: {directory.path}, at steps {numbers}")
    steps = build.steps()
    if checkpoint is not None and checkpoint.facts.get("steps", steps) != steps:
        raise ValueError(
            "The training data must be the same as at the start of the run: "
            f"{checkpoint.facts['steps']} batches per epoch. Received: {steps}"
        )
    if distribution.is_chief(strategy):
        directory.go_back(checkpoint)
    progress, metrics = Progress(), None
    if checkpoint is not None:
        state.restore(model, checkpoint.arrays)
        progress, metrics = Progress(**checkpoint.facts["progress"]), checkpoint.facts["metrics"]
    monitor = "val_adversarial_accuracy" if model.has_adversary else "val_natural_accuracy"
    return Saver(directory, progress, steps, FLAGS.save_every, monitor, requests, metrics)


def _validates(epoch):
    return is_measured(epoch, FLAGS.epochs, FLAGS.validate_every)


def _where(saver, strategy):
    devices = f" on {strategy.num_replicas_in_sync} devices" if strategy.num_replicas_in_sync > 1 else ""
    begun = f" (from step {saver.progress.step + 1} of {saver.steps})" if saver.progress.step else ""
    if saver.progress.step == saver.steps:
        begun = " (from its validation)"
    return f"{devices}, epochs {saver.progress.epoch + 1}{begun} to {FLAGS.epochs}"
