"""Stochastic gradient descent with the papers' weight decay, and a warm-up for any learning rate schedule."""

import contextlib
import numbers
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from keras_mart.typing import Scalar, Tensor

__all__ = ["SGD", "Warmup"]


@keras.saving.register_keras_serializable(package="keras_mart")
class SGD(keras.optimizers.SGD):
    """Stochastic gradient descent with PyTorch's weight decay and momentum.

        g = gradient + weight_decay * w
        v = momentum * v + g
        w = w - learning_rate * v                       (nesterov: w - learning_rate * (g + momentum * v))

    Differences from `keras.optimizers.SGD`: weight decay is coupled, that is, added to the gradient, so that it
    passes through the momentum; Keras subtracts `learning_rate * weight_decay * w` separately, which is
    `1 / (1 - momentum)` times weaker. The velocity `v` does not contain the learning rate. This matters only when the
    rate changes: Keras's velocity still contains the old rate, here the new rate applies at once. Every trainable
    variable decays, including biases and the parameters of BatchNormalization, except those given to
    `exclude_from_weight_decay`. A sparse gradient becomes dense if weight decay is not 0 (PyTorch rejects it).

    Args:
        learning_rate: float, `LearningRateSchedule` or callable.
        momentum: float in [0, 1].
        nesterov: bool; no effect if `momentum` is 0.
        weight_decay: float, at least 0; None means 0.
        **kwargs: arguments of every Keras optimizer (`clipnorm`, `use_ema`, ...). Gradients are clipped before weight
            decay is added, as in PyTorch.

    Raises:
        ValueError: `weight_decay` is negative.

    Reference: the update of `torch.optim.SGD`; the recipes of MART (OpenReview rklOg6EFwS), TRADES (1901.08573).
    """

    def __init__(
        self, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | Callable = 0.01,
        momentum: float = 0.0, nesterov: bool = False, weight_decay: float | None = 0.0, **kwargs: Any,
    ):  # fmt: skip
        if weight_decay is not None and not weight_decay >= 0:
            raise ValueError(f"`weight_decay` must not be negative. Received: weight_decay={weight_decay}")
        super().__init__(
            learning_rate=learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, **kwargs
        )
        self._excluded: frozenset = frozenset()
        self._excluded_names: str | None = None
        self._decayed: frozenset[int] = frozenset()

    def exclude_from_weight_decay(
        self, var_list: Iterable[keras.Variable | tf.Variable] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """Excludes variables from weight decay; replaces the exclusions of an earlier call.

        Args:
            var_list: list of variables.
            var_names: list of regular expressions; variables with a match in their name are excluded too.

        Raises:
            ValueError: the optimizer is already built.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay` must be called before the optimizer is built. "
                f"Received: an optimizer that was built with {len(self.variables)} variables"
            )
        self._excluded = frozenset(_tensorflow_variable(variable).ref() for variable in var_list or ())
        self._excluded_names = "|".join(var_names) if var_names else None

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the velocities, and determines which variables decay."""
        if self.built:
            return
        # All variables are excluded from Keras's own, decoupled weight decay.
        super().exclude_from_weight_decay(variables)
        super().build(variables)
        self._decayed = frozenset(number for number, each in enumerate(variables) if self._decays(each))

    def _decays(self, variable):
        variable = _tensorflow_variable(variable)
        named = self._excluded_names is not None and re.search(self._excluded_names, variable.name)
        return not named and variable.ref() not in self._excluded

    def update_step(self, gradient: Tensor, variable: keras.Variable | tf.Variable, learning_rate: Scalar) -> None:
        """Updates one variable, and its velocity if there is momentum."""
        gradient = ops.cast(gradient, variable.dtype)
        # Without the dependency, TensorFlow computes the terms that do not need the gradient when the step begins, and
        # keeps them until the end: copies of all weights and velocities.
        with tf.control_dependencies([gradient]):
            self._update(gradient, variable, ops.cast(learning_rate, variable.dtype))

    def _update(self, gradient, variable, learning_rate):
        # Private, but used in Keras's guide for custom optimizers: a replica's variable is a different object.
        index = self._get_variable_index(variable)
        if self.weight_decay and index in self._decayed:
            gradient = ops.add(gradient, ops.multiply(variable, ops.cast(self.weight_decay, variable.dtype)))
        step = gradient
        if self.momentum != 0:
            momentum = ops.cast(self.momentum, variable.dtype)
            velocity = self.momentums[index]
            self.assign(velocity, ops.add(ops.multiply(velocity, momentum), gradient))
            step = ops.add(gradient, ops.multiply(velocity, momentum)) if self.nesterov else velocity
        self.assign_sub(variable, ops.multiply(step, learning_rate))


def _tensorflow_variable(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


@keras.saving.register_keras_serializable(package="keras_mart")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Raises the learning rate linearly from 0, then follows a schedule from the schedule's step 0.

        rate(step) = schedule(0) * step / steps         where step < steps
                     schedule(step - steps)             afterwards

    Differences: in `keras.optimizers.schedules` only `CosineDecay` has a warm-up; this one works for any schedule,
    without a branch in the training step. Steps count from 0, so that the first one has a rate of 0, as with
    `torch.optim.lr_scheduler.CyclicLR` from 0. PyTorch's `OneCycleLR` rises along a cosine from a 25th of the largest
    rate, and ends at a 250,000th of it. Both PyTorch schedules also lower the momentum and raise it again.

    Args:
        schedule: a `LearningRateSchedule`, or a float for a constant rate.
        steps: number of warm-up steps, at least 0.

    Raises:
        ValueError: `schedule` or `steps` is not such a value.

    Reference: Goyal et al., 1706.02677.
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule | float, steps: int):
        super().__init__()
        if not isinstance(schedule, (keras.optimizers.schedules.LearningRateSchedule, numbers.Real)):
            raise ValueError(f"`schedule` must be a LearningRateSchedule or a float. Received: schedule={schedule!r}")
        if not isinstance(steps, numbers.Integral) or steps < 0:
            raise ValueError(f"`steps` must be an integer of at least 0. Received: steps={steps!r}")
        self.schedule: keras.optimizers.schedules.LearningRateSchedule | float = schedule
        self.steps: int = steps

    def __call__(self, step: int | Tensor) -> Tensor:
        step = ops.convert_to_tensor(step)
        if isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule):
            rate = self.schedule(ops.maximum(step - self.steps, 0))
        else:
            rate = ops.convert_to_tensor(self.schedule, "float32")
        if self.steps == 0:
            return rate
        return rate * ops.minimum(ops.cast(step, rate.dtype) / self.steps, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


@contextlib.contextmanager
def applying_summed_gradients(optimizer, compiled):
    """Lets a Keras optimizer apply gradients that are already summed over replicas, as one program on each replica.

    Inside this context it clips the sum, not each replica's part of it. Only the two private methods replaced here sum
    gradients and update variables one at a time.

    Args:
        optimizer: a built Keras optimizer.
        compiled: compiles a function of tensors to one program, where that is faster.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)

    def update(strategy, pairs, rate):
        gradients, variables = zip(*pairs, strict=True)

        def update_all(gradients, rate):
            for gradient, variable in zip(gradients, variables, strict=True):
                inner.update_step(gradient, variable, rate)

        def on_device(_, gradients, rate):
            compiled(update_all)(gradients, tf.convert_to_tensor(rate))

        strategy.extended.update(variables[0], on_device, args=(list(gradients), rate), group=False)

    replaced = {"_all_reduce_sum_gradients": list, "_distributed_tf_update_step": update}
    vars(inner).update(replaced)
    try:
        yield
    finally:  # every replica enters and leaves this context, all at the same point
        for name in replaced:
            vars(inner).pop(name, None)
