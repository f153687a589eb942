"""Stochastic gradient descent as the papers' recipes mean it, and the warm-up of any learning rate schedule."""

import contextlib
import numbers
import re

import keras
import tensorflow as tf
from keras import ops

__all__ = ["SGD", "Warmup"]


@keras.saving.register_keras_serializable(package="keras_mart")
class SGD(keras.optimizers.SGD):
    """Stochastic gradient descent with PyTorch's weight decay and momentum.

        g = gradient + weight_decay * w
        v = momentum * v + g
        w = w - learning_rate * v                       (nesterov: w - learning_rate * (g + momentum * v))

    Differences from `keras.optimizers.SGD`: weight decay is coupled, that is, added to the gradient, so that it
    goes through the momentum; Keras subtracts `learning_rate * weight_decay * w` beside it, which is
    `1 / (1 - momentum)` times weaker. The velocity `v` does not contain the learning rate; this matters only when
    the rate changes: Keras carries the old rate on in its velocity, here the new rate holds at once. Every trainable
    variable decays, biases and BatchNormalization's parameters too, except for those given to
    `exclude_from_weight_decay`. A sparse gradient becomes dense where weight decay is not 0 (PyTorch refuses it).

    Args:
        learning_rate: float, `LearningRateSchedule` or callable.
        momentum: float in [0, 1].
        nesterov: bool; without effect when `momentum` is 0.
        weight_decay: float, at least 0; None means 0.
        **kwargs: what every Keras optimizer takes (`clipnorm`, `use_ema`, ...). Clipping sees the gradient before
            weight decay is added, as in PyTorch.

    Raises:
        ValueError: if `weight_decay` is negative.

    Reference: the update of `torch.optim.SGD`; the recipes of MART (OpenReview rklOg6EFwS), TRADES (1901.08573).
    """

    def __init__(self, learning_rate=0.01, momentum=0.0, nesterov=False, weight_decay=0.0, **kwargs):
        if weight_decay is not None and not weight_decay >= 0:
            raise ValueError(f"`weight_decay` must not be negative. Received: weight_decay={weight_decay}")
        super().__init__(
            learning_rate=learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, **kwargs
        )
        self._excluded, self._excluded_names, self._decayed = frozenset(), None, frozenset()

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Leaves variables out of the weight decay, in place of those that an earlier call has left out.

        Args:
            var_list: list of variables.
            var_names: list of regular expressions: those in whose names one is found are left out too.

        Raises:
            ValueError: if the optimizer is built, that is, has seen its variables.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay` must be called before the optimizer is built. "
                f"Received: an optimizer that was built with {len(self.variables)} variables"
            )
        self._excluded = frozenset(_of_tensorflow(variable).ref() for variable in var_list or ())
        self._excluded_names = "|".join(var_names) if var_names else None

    def build(self, variables):
        """Makes the velocities, and settles which variables decay."""
        if self.built:
            return
        # From Keras's own weight decay, which is beside the update: all of them.
        super().exclude_from_weight_decay(variables)
        super().build(variables)
        self._decayed = frozenset(number for number, each in enumerate(variables) if self._decays(each))

    def _decays(self, variable):
        variable = _of_tensorflow(variable)
        named = self._excluded_names is not None and re.search(self._excluded_names, variable.name)
        return not named and variable.ref() not in self._excluded

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable, and its velocity where there is momentum."""
        gradient = ops.cast(gradient, variable.dtype)
        # TensorFlow would compute what needs no gradient when the step begins, and keep it until the end: a copy of the
        # weights, and one of their velocities.
        with tf.control_dependencies([gradient]):
            self._update(gradient, variable, ops.cast(learning_rate, variable.dtype))

    def _update(self, gradient, variable, learning_rate):
        # Private, yet what Keras's documentation of own optimizers has: a replica's variable is another object.
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


def _of_tensorflow(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


@keras.saving.register_keras_serializable(package="keras_mart")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Raises the learning rate from 0 in a straight line, then follows a schedule from the schedule's own step 0.

        rate(step) = schedule(0) * step / steps         where step < steps
                     schedule(step - steps)             from then on

    Differences: in `keras.optimizers.schedules` only `CosineDecay` has a warm-up; this is the same one for any
    schedule, without a branch in the training step. Steps count from 0, so that the first one has a rate of 0, as with
    `torch.optim.lr_scheduler.CyclicLR` from 0. PyTorch's `OneCycleLR` rises by a cosine from a 25th of the largest
    rate, and ends at a 250,000th of it. Both of PyTorch's also move the momentum, down and up again.

    Args:
        schedule: a `LearningRateSchedule`, or a float for a rate that stays.
        steps: number of steps of the rise, at least 0.

    Raises:
        ValueError: `schedule` or `steps` is something else.

    Reference: Goyal et al., 1706.02677.
    """

    def __init__(self, schedule, steps):
        super().__init__()
        if not isinstance(schedule, (keras.optimizers.schedules.LearningRateSchedule, numbers.Real)):
            raise ValueError(f"`schedule` must be a LearningRateSchedule or a float. Received: schedule={schedule!r}")
        if not isinstance(steps, numbers.Integral) or steps < 0:
            raise ValueError(f"`steps` must be an integer of at least 0. Received: steps={steps!r}")
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        step = ops.convert_to_tensor(step)
        if isinstance(self.schedule, numbers.Real):
            rate = ops.convert_to_tensor(self.schedule, "float32")
        else:
            rate = self.schedule(ops.maximum(step - self.steps, 0))
        if self.steps == 0:
            return rate
        return rate * ops.minimum(ops.cast(step, rate.dtype) / self.steps, 1.0)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


@contextlib.contextmanager
def applying_summed_gradients(optimizer, compiled):
    """Inside, a Keras optimizer takes gradients that replicas have summed, and updates as one program on each.

    It clips the sum then, not each replica's part of it. Keras adds the gradients up, and goes through the variables
    one by one, in these two private methods only.

    Args:
        optimizer: a built Keras optimizer.
        compiled: makes one program of a function of tensors, where that pays.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)

    def update(strategy, pairs, rate):
        gradients, variables = zip(*pairs, strict=True)

        def together(gradients, rate):
            for gradient, variable in zip(gradients, variables, strict=True):
                inner.update_step(gradient, variable, rate)

        def on_device(_, gradients, rate):
            compiled(together)(gradients, tf.convert_to_tensor(rate))

        strategy.extended.update(variables[0], on_device, args=(list(gradients), rate), group=False)

    own = {"_all_reduce_sum_gradients": list, "_distributed_tf_update_step": update}
    vars(inner).update(own)
    try:
        yield
    finally:  # several replicas do the same, and leave together
        for name in own:
            vars(inner).pop(name, None)
