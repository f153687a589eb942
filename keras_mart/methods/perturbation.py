"""Adversarial weight perturbation: training at weights that are moved a little towards a higher loss."""

import dataclasses
import numbers

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation, for `weight_perturbation=` of every method.

    The gradient of a step is taken not at the weights w but at w + v, where each kernel's part of v is

        v = gamma * |w| * g / |g|

    and g is the gradient of the method's loss on the same batch, at w, over all replicas. Kernels are the trainable
    weights of rank 2 and more; biases and BatchNormalization's parameters stay. BatchNormalization's running statistics
    see the pass at w + v alone.

    Differences: g is that of the method's own loss, as for TRADES in the official code, which climbs the cross-entropy
    for AT alone (the same there). The official code takes v back after the optimizer's step, so that weight decay sees
    w + v; here the optimizer sees w.

    Args:
        gamma: size of the perturbation relative to a kernel's norm; the official code has 0.01 (AT) and 0.005 (TRADES).
        warmup: number of epochs without perturbation at the beginning, as `fit` numbers them (`initial_epoch`); the
            official code has 0 (AT) and 10 (TRADES, whose epochs count from 1: nine of them).

    Raises:
        ValueError: a gamma that is not positive, a warmup that is no number of epochs.

    Reference: Wu et al., arXiv 2004.05884, and its code (github.com/csdongxian/AWP).
    """

    gamma: float
    warmup: int = 0

    def __post_init__(self):
        if not 0 < self.gamma < float("inf"):
            raise ValueError(f"`gamma` must be positive and finite. Received: gamma={self.gamma}")
        if not isinstance(self.warmup, numbers.Integral) or self.warmup < 0:
            raise ValueError(f"`warmup` must be a number of epochs, at least 0. Received: warmup={self.warmup}")

    def perturbations(self, variables, gradients):
        """Returns number to what is added to each of the trainable variables that are kernels and have a gradient.

        Args:
            variables: the trainable variables.
            gradients: number to the gradient of the method's loss over all replicas.
        """
        kernels = {number: each for number, each in gradients.items() if len(each.shape) > 1}
        return {number: self._perturbation(variables[number], each) for number, each in kernels.items()}

    def _perturbation(self, kernel, gradient):
        kernel, ascent = (ops.cast(each, "float32") for each in (kernel, gradient))  # float16 lacks the range
        length = _length(ascent)
        usable = ops.isfinite(length) & (length > 0)
        move = self.gamma * _length(kernel) / ops.where(usable, length, 1.0) * ascent
        return ops.cast(ops.where(usable, move, 0.0), gradient.dtype)

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _length(tensor):
    return ops.sqrt(ops.sum(ops.square(tensor)))
