"""Adversarial weight perturbation (AWP): training at weights shifted slightly towards a higher loss."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation (AWP), for the argument `weight_perturbation` of every method.

    A step computes its gradient at w + v instead of at the weights w, where for each kernel

        v = gamma * |w| * g / |g|

    and g is the gradient of the method's loss on the same batch, at w, over all replicas. Kernels are the trainable
    weights of rank 2 and above; biases and BatchNormalization's parameters are not perturbed. BatchNormalization's
    running statistics are updated only by the forward passes at w + v.

    Differences: g is the gradient of the method's own loss, as in the official code for TRADES; the official code for
    AT uses the cross-entropy, which is AT's loss. The official code subtracts v after the optimizer's step, so that
    weight decay applies to w + v; here it applies to w.

    Args:
        gamma: size of the perturbation relative to a kernel's norm; 0.01 (AT) and 0.005 (TRADES) in the official code.
        warmup: number of first epochs without perturbation, as `fit` numbers them (`initial_epoch`); 0 (AT) and 10
            (TRADES, whose epochs count from 1: nine of them) in the official code.

    Raises:
        ValueError: `gamma` is not positive, or `warmup` is not a number of epochs.

    Reference: Wu et al., arXiv 2004.05884, and its code (github.com/csdongxian/AWP).
    """

    gamma: float
    warmup: int = 0

    def __post_init__(self):
        if not 0 < self.gamma < float("inf"):
            raise ValueError(f"`gamma` must be positive and finite. Received: gamma={self.gamma}")
        if not isinstance(self.warmup, numbers.Integral) or self.warmup < 0:
            raise ValueError(f"`warmup` must be a number of epochs, at least 0. Received: warmup={self.warmup}")

    def perturbations(self, variables: Sequence[keras.Variable], gradients: dict[int, Tensor]) -> dict[int, Tensor]:
        """Returns {index of a variable: perturbation v} for all kernels that have a gradient.

        Args:
            variables: the trainable variables.
            gradients: {index of a variable: gradient of the method's loss over all replicas}.
        """
        kernels = {number: each for number, each in gradients.items() if len(each.shape) > 1}
        return {number: self._perturbation(variables[number], each) for number, each in kernels.items()}

    def _perturbation(self, kernel, gradient):
        kernel, ascent = (ops.cast(each, "float32") for each in (kernel, gradient))  # float16's range is too small
        length = _length(ascent)
        usable = ops.isfinite(length) & (length > 0)
        offset = self.gamma * _length(kernel) / ops.where(usable, length, 1.0) * ascent
        return ops.cast(ops.where(usable, offset, 0.0), gradient.dtype)

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AWP":
        return cls(**config)


def _length(tensor):
    return ops.sqrt(ops.sum(ops.square(tensor)))
