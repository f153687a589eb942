"""Saves a run while it trains, so that it can be resumed after an interruption."""

import dataclasses

import keras

from keras_mart import distribution
from keras_mart.cli import state
from keras_mart.methods.model import call_after_each

# Number of steps between two checks of whether any worker was requested to stop; each check makes all workers wait.
STEPS_BETWEEN_CHECKS = 10


@dataclasses.dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: number of finished epochs.
        step: number of finished steps of the current epoch; after its last step only the validation is missing.
        rows: the metrics of each epoch, the rows of history.csv.
        best: the largest value so far of the metric that determines the best checkpoint, `None` before the first.
    """

    epoch: int = 0
    step: int = 0
    rows: list = dataclasses.field(default_factory=list)
    best: float | None = None


class Saver(keras.callbacks.Callback):
    """The last callback of a run: writes history.csv, the best and the last checkpoint, and the state to resume from.

    Args:
        directory: the run directory; only the chief writes to it.
        progress: the `Progress`, which is updated.
        steps: number of steps per epoch.
        every: (number, "steps" or "epochs"), the interval between two saved states; the last one is always saved.
        monitor: the metric that determines the best checkpoint.
        requests: the `stopping.Requests`.
        metrics: the metrics that `state.metrics` returned if training resumes within an epoch, otherwise `None`.
    """

    def __init__(self, directory, progress, steps, every, monitor, requests, metrics=None):
        super().__init__()
        self.directory = directory
        self.progress = progress
        self.steps = steps
        self.every = every
        self.monitor = monitor
        self.requests = requests
        self.metrics = metrics
        self.saved = self._position()
        self.last_epoch = None  # the epoch after which `fit` ends early

    def number(self):
        """Returns the number of finished steps, which is the number of the saved state."""
        return self.progress.epoch * self.steps + self.progress.step

    def on_epoch_begin(self, epoch, logs=None):
        self.requests.deferred = True
        if self.progress.step:
            state.restore_metrics(self.model, self.metrics)  # Keras has reset them
        # Not a batch hook: for one, Keras would wait for each step and fetch its logs.
        self.model.train_function = call_after_each(self.model.train_function, self.after_steps)
        if self.progress.step == self.steps:
            self._allow_interrupt()

    def after_steps(self):
        """Counts the steps of one execution; saves the state if it is due, and stops if it was requested."""
        before = self.number()
        self.progress.step = min(self.progress.step + self.model.steps_per_execution, self.steps)
        epoch_done = self.progress.step == self.steps

        def passed(every):
            return self.number() // every > before // every

        stop = (epoch_done or self._workers() == 1 or passed(STEPS_BETWEEN_CHECKS)) and self._stop_requested()
        due = stop or (self.every[1] == "steps" and passed(self.every[0]))
        if due or epoch_done:
            self.model.guard.report()  # reports steps that were skipped or stop the run
            self.metrics = state.metrics(self.model)
        if due:
            self.save()
        if stop:
            self._stop()
        if epoch_done:
            self._allow_interrupt()

    def on_test_begin(self, logs=None):
        self._test_function = self.model.test_function
        if self._workers() > 1:
            self.model.test_function = call_after_each(self._test_function, self.after_validation_steps)

    def on_test_end(self, logs=None):
        self.model.test_function = self._test_function

    def after_validation_steps(self):
        """Stops all workers together if one of them was requested to stop."""
        if self._stop_requested():
            self.save()
            self._stop()

    def on_epoch_end(self, epoch, logs=None):
        self.requests.deferred = True
        row = {"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}}
        value = row.get(self.monitor, float("nan"))
        better = value > (float("-inf") if self.progress.best is None else self.progress.best)
        self.progress = dataclasses.replace(
            self.progress, epoch=epoch + 1, step=0, rows=[*self.progress.rows, row],
            best=value if better else self.progress.best,
        )  # fmt: skip
        self.metrics = None
        if self._is_chief():
            self.directory.record(self.model, self.progress.rows, better)
        last = epoch + 1 == self.params["epochs"]
        stop = self._stop_requested()
        if last or stop or (self.every[1] == "epochs" and (epoch + 1) % self.every[0] == 0):
            self.save()
        if stop:
            self._stop()
        self._allow_interrupt()
        self.model.stop_training |= epoch == self.last_epoch

    def save(self):
        """Saves the state unless it is saved already; `metrics` must contain those of the current epoch."""
        if self._position() != self.saved and self._is_chief():
            facts = {"progress": dataclasses.asdict(self.progress), "metrics": self.metrics, "steps": self.steps}
            self.directory.save(self.number(), state.arrays(self.model), facts)
        self.saved = self._position()

    def _position(self):
        return self.progress.epoch, self.progress.step

    def _allow_interrupt(self):
        """Lets a signal interrupt the code that follows, such as validation, which changes no state.

        Not for several workers, which must stop together.
        """
        if self._workers() == 1:
            self.requests.raise_if_stopped()

    def _workers(self):
        return distribution.worker(self.model.distribute_strategy)[1]

    def _stop(self):
        # Waits for all workers: one that exits first would make the chief fail.
        distribution.all_gather("saved", self.model.distribute_strategy)
        raise self.requests.stopped()

    def _stop_requested(self):
        """Returns whether any worker was requested to stop."""
        return distribution.any_across_workers(self.requests.number is not None, self.model.distribute_strategy)

    def _is_chief(self):
        return distribution.is_chief(self.model.distribute_strategy)
