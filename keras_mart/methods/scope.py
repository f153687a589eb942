"""The scope of a training step's passes: nothing is assigned, and what layers would have assigned is kept."""

import contextlib
import threading

import keras
import tensorflow as tf
from keras import ops

# What `keras.random.SeedGenerator` calls its variable.
SEED = "seed_generator_state"


class Passes(keras.StatelessScope):
    """Keeps what layers assign in their calls, as the newest tensor of each variable.

    A trainable variable that is assigned in a call, as by `keras.layers.SpectralNormalization`, stands for itself in
    what follows: the gradient with respect to it is that with respect to the assigned value, as in Keras's own step.

    Args:
        values: pairs of a variable and the tensor to read in its place.
    """

    def __init__(self, values=()):
        super().__init__(values, collect_losses=True)
        self._given, self._assigned = dict(self.state_mapping), {}

    def add_update(self, update):
        variable, value = update
        if variable.trainable:
            value = _standing_for(ops.cast(variable.value, value.dtype), value)
        self._assigned[id(variable)] = variable, value
        super().add_update((variable, value))

    def rewind_seeds(self):
        """Lets what follows draw the random numbers that were drawn already."""
        for variable, _ in self._assigned.values():
            if variable.name == SEED:
                self.state_mapping.pop(id(variable))
        self.state_mapping = {**self._given, **self.state_mapping}

    @contextlib.contextmanager
    def forgetful(self):
        """What is assigned inside is forgotten behind it."""
        before = dict(self._assigned), dict(self.state_mapping)
        yield
        self._assigned, self.state_mapping = before

    def assigned(self):
        """Returns the pairs of a variable and what was assigned to it last."""
        return list(self._assigned.values())


@tf.custom_gradient
def _standing_for(variable, value):
    return tf.identity(value), lambda upstream: (upstream, None)


class _Inlined:
    """Runs `tf.function`s as the Python functions that they were made of.

    A traced one has read the variables when it was traced, whatever a scope gives in their place, and keeps what its
    layers assign in a graph of its own. The switch is one for all threads: it is on as long as one replica needs it.
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
                "`network` must not need AutoGraph: in training its `tf.function`s are run as the Python functions "
                "that they were made of. Write Python conditions on tensors with `keras.ops.cond`. "
                f"Received: {error}"
            ) from error


inlined = _Inlined()
