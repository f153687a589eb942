"""Random noise, an attack without any knowledge of the network."""

import dataclasses

import keras

from keras_mart import checks
from keras_mart.attacks import base
from keras_mart.typing import ImageFunction, Scalar, Seed, Tensor


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class Noise(base.Climb):
    """Draws a random point uniformly from the ball; of several, takes the worst (misclassified first, then by loss).

    A baseline rather than an attack: accuracy under noise says nothing about an adversary.

    Args:
        threat: the ball, `Linf` or `L2`.
        samples: number of points drawn.

    Raises:
        ValueError: `samples` not positive.
    """

    samples: int = 1

    gradients = 0

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.samples, "samples")

    def maximise(
        self, objective: ImageFunction, x: Tensor, epsilon: Scalar | None = None, seed: Seed = None,
        score: ImageFunction | None = None,
    ) -> Tensor:  # fmt: skip
        def draw(seed):
            return self.threat.sample(x, seed, epsilon)

        return base.worst_of_runs(self.samples, draw, score or objective, x, base.as_seed(seed))
