"""Numbers of a model that take effect at once, also in a step that is traced already."""

import contextlib
import math
import operator

import tensorflow as tf
from keras import ops

# What a number must be, in words and as a function: the first two arguments of a `Hyperparameter`.
NOT_NEGATIVE = "finite and not negative", lambda value: 0 <= value < math.inf
POSITIVE = "positive and finite", lambda value: 0 < value < math.inf


class Hyperparameter:
    """A number in the state of a model: `gamma = Hyperparameter()` in its class, `self.gamma = 2.0` in its constructor.

    In a hook that is being traced it is a float32 scalar tensor (int32 for an integer), elsewhere the Python number.
    A callback that sets it between two epochs or steps is heeded without a new trace. It is one of the model's weights:
    saved with them, and set by `load_weights` and by what restores weights, as `EarlyStopping` does. A number that is
    `None` when the model is made stays `None`.

    Args:
        rule: what the number must be, in words.
        holds: maps a number to whether it is that; every number is, by default.
        integer: whether it is an integer.
    """

    def __init__(self, rule="a number", holds=lambda value: True, integer=False):
        self.rule, self.holds, self.integer = rule, holds, integer

    def __set_name__(self, owner, name):
        self.name, self.place = name, f"_{name}_variable"

    def __get__(self, model, owner=None):
        if model is None:
            return self
        variable = getattr(model, self.place)
        if variable is None or not tf.inside_function():
            return variable if variable is None else variable.numpy().item()
        return ops.cast(variable, "int32" if self.integer else "float32")

    def __set__(self, model, value):
        number = value if value is None else self._checked(value)
        if not hasattr(model, self.place):
            setattr(model, self.place, None if number is None else self._variable(model))
        if (getattr(model, self.place) is None) != (number is None):
            raise ValueError(f"A model is made with or without `{self.name}`. Received: {self.name}={value!r} later")
        if number is not None:
            getattr(model, self.place).assign(number)

    def _checked(self, value):
        with contextlib.suppress(TypeError, ValueError):
            number = operator.index(value) if self.integer else float(value / 1)
            if self.holds(number):
                return number
        raise ValueError(f"`{self.name}` must be {self.rule}. Received: {self.name}={value!r}")

    def _variable(self, model):
        return model.add_weight(
            shape=(), dtype="int32" if self.integer else "float64", trainable=False, autocast=False, name=self.name,
            initializer="zeros", aggregation="only_first_replica",
        )  # fmt: skip


def names(model):
    """Returns the names of all hyperparameters of a model."""
    return [name for name in dir(type(model)) if isinstance(getattr(type(model), name), Hyperparameter)]
