"""Random noise: what an adversary without any knowledge of the network does."""

import dataclasses

import keras

from keras_mart import checks
from keras_mart.attacks import base


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class Noise(base.Climb):
    """A random point of the ball, uniformly drawn; of several, the worst (misclassified first, then by loss).

    A yardstick rather than an attack: accuracy under noise says nothing about an adversary.

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

    def maximise(self, objective, x, epsilon=None, seed=None, score=None):
        def draw(seed):
            return self.threat.sample(x, seed, epsilon)

        return base.worst_of_runs(self.samples, draw, score or objective, x, base.as_seed(seed))
