"""The scope in which a training step calls the network: collects assignments of layers instead of making them."""

import contextlib
import threading

import keras
import tensorflow as tf
from keras import ops

# Name of the variable of `keras.random.SeedGenerator`.
SEED = "seed_generator_state"


class StepScope(keras.StatelessScope):
    """Collects the last value that layers assign to each variable in their calls.

    Some layers, such as `keras.layers.SpectralNormalization`, assign a trainable variable in their calls. From then on
    the gradient with respect to the variable is that with respect to the assigned value, as in Keras's own step.

    Args:
        values: pairs of a variable and the tensor to read in its place.
    """

    def __init__(self, values=()):
        super().__init__(values, collect_losses=True)
        self._given, self._assigned = dict(self.state_mapping), {}

    def add_update(self, update):
        variable, value = update
        if variable.trainable:
            value = _straight_through(ops.cast(variable.value, value.dtype), value)
        self._assigned[id(variable)] = variable, value
        super().add_update((variable, value))

    def rewind_seeds(self):
        """Resets all seeds, so that the next forward pass draws the same random numbers as the last one."""
        for variable, _ in self._assigned.values():
            if variable.name == SEED:
                self.state_mapping.pop(id(variable))
        self.state_mapping = {**self._given, **self.state_mapping}

    @contextlib.contextmanager
    def discard_updates(self):
        """Context that discards the assignments made inside it."""
        before = dict(self._assigned), dict(self.state_mapping)
        yield
        self._assigned, self.state_mapping = before

    def assigned(self):
        """Returns pairs of a variable and the value last assigned to it."""
        return list(self._assigned.values())


@tf.custom_gradient
def _straight_through(variable, value):
    return tf.identity(value), lambda upstream: (upstream, None)


class _InlineFunctions:
    """Context in which each `tf.function` runs as the Python function that it was made from.

    A traced function would read the variables, not the values that a scope maps them to, and would keep what its layers
    assign in its own graph. TensorFlow's switch is global to all threads: it stays on while any replica needs it.
    """

    def __init__(self):
        self._lock, self._users, self._before = threading.Lock(), 0, False

    def __enter__(self):
        with self._lock:
            if not self._users:
                self._before = tf.config.functions_run_eagerly()
                tf.config.run_functions_eagerly(True)
            self._users += 1

    def __exit__(self, kind, error, _):
        with self._lock:
            self._users -= 1
            if not self._users:
                tf.config.run_functions_eagerly(self._before)
        if isinstance(error, tf.errors.OperatorNotAllowedInGraphError):
            raise ValueError(
                "`network` must not need AutoGraph: in training its `tf.function`s run as the Python functions "
                "that they were made from. Write Python conditions on tensors with `keras.ops.cond`. "
                f"Received: {error}"
            ) from error


inline_functions = _InlineFunctions()
