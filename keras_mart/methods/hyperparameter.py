"""Hyperparameters of a model that can be set at any time without tracing its steps again."""

import contextlib
import math
import operator
from collections.abc import Callable

import tensorflow as tf
from keras import ops

# Values of `rule` and `holds`, the first two arguments of a `Hyperparameter`.
NOT_NEGATIVE = "finite and not negative", lambda value: 0 <= value < math.inf
POSITIVE = "positive and finite", lambda value: 0 < value < math.inf


class Hyperparameter:
    """A number kept as a weight of a model, which takes effect as soon as it is set, without a new trace.

    A descriptor: write `gamma = Hyperparameter()` in the class and `self.gamma = 2.0` in the constructor. Inside a
    traced hook `self.gamma` is a float32 scalar tensor (int32 for an integer), elsewhere a Python number. Callbacks may
    set it between epochs or steps. It is saved with the model's weights, and changed by `load_weights` and by anything
    else that restores weights, such as `EarlyStopping`. A hyperparameter that the constructor sets to `None` stays
    `None`.

    Args:
        rule: the condition on the number, as text that completes "must be ...".
        holds: function that returns whether a number meets the condition; by default every number does.
        integer: whether the number is an integer.
    """

    def __init__(
        self, rule: str = "a number", holds: Callable[[float], bool] = lambda value: True, integer: bool = False
    ) -> None:
        self.rule, self.holds, self.integer = rule, holds, integer

    def __set_name__(self, owner, name):
        self.name, self.attribute = name, f"_{name}_variable"

    def __get__(self, model, owner=None):
        if model is None:
            return self
        variable = getattr(model, self.attribute)
        if variable is None or not tf.inside_function():
            return variable if variable is None else variable.numpy().item()
        return ops.cast(variable, "int32" if self.integer else "float32")

    def __set__(self, model, value):
        number = value if value is None else self._checked(value)
        if not hasattr(model, self.attribute):
            setattr(model, self.attribute, None if number is None else self._variable(model))
        if (getattr(model, self.attribute) is None) != (number is None):
            raise ValueError(f"A model is made with or without `{self.name}`. Received: {self.name}={value!r} later")
        if number is not None:
            getattr(model, self.attribute).assign(number)

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
