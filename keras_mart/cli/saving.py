"""What a run records and saves as it goes on, so that whatever ends it costs little."""

import dataclasses

import keras

from keras_mart import distribution
from keras_mart.cli import state
from keras_mart.methods.model import followed

# Several workers ask each other only so often whether one of them is to stop: they wait for the answer.
STEPS_BETWEEN = 10


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: number of epochs that are over.
        step: number of steps of the next one that are over; after its last the validation is still to come.
        rows: what was measured after each epoch, as history.csv has it.
        best: the largest value yet of what chooses the best checkpoint, `None` before the first.
    """

    epoch: int = 0
    step: int = 0
    rows: list = dataclasses.field(default_factory=list)
    best: float | None = None


class Saver(keras.callbacks.Callback):
    """The last callback of a run: writes history.csv, the best and the last checkpoint, and the state to go on from.

    Args:
        directory: the run directory; only the chief writes to it.
        progress: the `Progress`, which it keeps.
        steps: number of steps in an epoch.
        every: (number, "steps" or "epochs") between two states that are saved; the last one always is.
        monitor: the metric that chooses the best checkpoint.
        requests: the `stopping.Requests`.
        metrics: as `state.metrics` took them in the middle of the first epoch to come, `None` at its beginning.
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
        self.saved = self._place()
        self.last_epoch = None  # after which `fit` is to end before its time

    def number(self):
        """The number of steps that are over: it numbers the states."""
        return self.progress.epoch * self.steps + self.progress.step

    def on_epoch_begin(self, epoch, logs=None):
        self.requests.deferred = True
        if self.progress.step:
            state.restore_metrics(self.model, self.metrics)  # Keras has just reset them
        # No batch hook: Keras would fetch the logs of every step, and wait for it.
        self.model.train_function = followed(self.model.train_function, self.after_steps)
        if self.progress.step == self.steps:
            self._allow_interrupt()

    def after_steps(self):
        """Counts the steps of one execution, saves where that is due, and stops where that was asked for."""
        before = self.number()
        self.progress.step = min(self.progress.step + self.model.steps_per_execution, self.steps)
        over = self.progress.step == self.steps

        def passed(every):
            return self.number() // every > before // every

        stop = (over or self._workers() == 1 or passed(STEPS_BETWEEN)) and self._asked_to_stop()
        due = stop or (self.every[1] == "steps" and passed(self.every[0]))
        if due or over:
            self.model.guard.look()  # whether these steps count
            self.metrics = state.metrics(self.model)
        if due:
            self.save()
        if stop:
            self._stop()
        if over:
            self._allow_interrupt()

    def on_test_begin(self, logs=None):
        self._judging = self.model.test_function
        if self._workers() > 1:
            self.model.test_function = followed(self._judging, self.after_validation_steps)

    def on_test_end(self, logs=None):
        self.model.test_function = self._judging

    def after_validation_steps(self):
        """Stops where that was asked for: several workers together."""
        if self._asked_to_stop():
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
        if self._writes():
            self.directory.record(self.model, self.progress.rows, better)
        last = epoch + 1 == self.params["epochs"]
        stop = self._asked_to_stop()
        if last or stop or (self.every[1] == "epochs" and (epoch + 1) % self.every[0] == 0):
            self.save()
        if stop:
            self._stop()
        self._allow_interrupt()
        self.model.stop_training |= epoch == self.last_epoch

    def save(self):
        """Saves the state, if it is not yet; what was measured of this epoch must be in `metrics`."""
        if self._place() != self.saved and self._writes():
            facts = {"progress": dataclasses.asdict(self.progress), "metrics": self.metrics, "steps": self.steps}
            self.directory.save(self.number(), state.arrays(self.model), facts)
        self.saved = self._place()

    def _place(self):
        return self.progress.epoch, self.progress.step

    def _allow_interrupt(self):
        """Lets a request end what follows at once: validation changes nothing. Several workers must end together."""
        if self._workers() == 1:
            self.requests.raise_if_stopped()

    def _workers(self):
        return distribution.worker(self.model.distribute_strategy)[1]

    def _stop(self):
        distribution.gathered("saved", self.model.distribute_strategy)  # who ends early would take the chief along
        raise self.requests.stopped()

    def _asked_to_stop(self):
        """Whether one of the workers is."""
        return distribution.any_worker(self.requests.number is not None, self.model.distribute_strategy)

    def _writes(self):
        return distribution.is_chief(self.model.distribute_strategy)
