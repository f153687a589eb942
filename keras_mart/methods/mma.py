"""Max-margin adversarial training (MMA)."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, losses
from keras_mart.attacks.base import Attack
from keras_mart.attacks.bisection import bisection
from keras_mart.methods import model
from keras_mart.methods.batch import Outputs
from keras_mart.methods.hyperparameter import POSITIVE, Hyperparameter
from keras_mart.threats import per_example
from keras_mart.typing import Tensor

# The search looks a little beyond the hinge (official code, 1.05).
SEARCH_BEYOND = 1.05


@keras.saving.register_keras_serializable("keras_mart")
class MMA(model.AdversarialModel):
    """Max-margin adversarial training (MMA): cross-entropy at each example's own decision boundary.

    For an example with p_y > 1/2 the attack climbs the soft margin inside a ball whose radius is the margin found when
    the example was last visited. A bisection along the direction found then gives the boundary and the new margin. For
    all other examples epsilon is 0, and their natural image is used. The loss is CE(p, y) / 3 + 2/3 CE at the boundary;
    the second term is dropped if the boundary lies at or beyond `max_epsilon`.

    The training data are ((image, index), label[, weight]), as from `datasets.load(..., with_index=True)`.

    As in the official code, margins are measured in units of the radius that the attack was given: if clipping to the
    image range shortens the perturbation, which matters mainly in L2, the boundary is closer than the margin says.

    Differences: correctness is tested and the bisection runs in `attack_mode`, by default in evaluation mode (the
    official code does both in training mode, the second by oversight), and the boundary image is clipped to [0, 1].

    Args:
        network, seed: as in `AdversarialModel`.
        attack: as in `AdversarialModel`. Its step size scales with the margin; a step size of 2.5 * epsilon / steps is
            the paper's. Its own epsilon is used only for validation, where `val_loss` drops the boundary's term if
            that epsilon is not below `max_epsilon`.
        num_examples: number of training examples; indices lie in [0, num_examples).
        max_epsilon: the hinge d_max in input units; the paper uses 32/255 (CIFAR-10) and 0.45 (MNIST).
        min_margin: radius of the smallest ball searched; the paper uses 0.005 (CIFAR-10), 0.1 (MNIST), 0.5 (L2).
        bisection_steps: number of bisection steps.

    Raises:
        ValueError: an argument is not positive; in `fit`, the data have no indices, or indices out of range.

    Reference: Ding et al., arXiv 1812.02637.
    """

    has_radius = False
    needs_index = True

    max_epsilon = Hyperparameter(*POSITIVE)
    min_margin = Hyperparameter(*POSITIVE)

    def __init__(
        self,
        network: keras.Model,
        attack: Attack | None = None,
        *,
        num_examples: int,
        max_epsilon: float,
        min_margin: float = 0.005,
        bisection_steps: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, attack, **kwargs)
        self.num_examples = num_examples
        self.max_epsilon = max_epsilon
        self.min_margin = min_margin
        self.bisection_steps = bisection_steps
        checks.positive_integer(num_examples, "num_examples")
        checks.positive_integer(bisection_steps, "bisection_steps")
        self._check_radii()
        if getattr(attack, "leaves_ball", False):
            raise ValueError(f"`attack` must stay in the ball that MMA gives it. Received: attack={attack}")
        if not self.attack.threat.epsilon > 0:
            raise ValueError(f"`attack` must have a positive epsilon, which its steps scale with. Received: {attack}")
        self.margins = self.add_weight(
            shape=(num_examples,), trainable=False, dtype="float32", name="margins",
            initializer="zeros", aggregation="only_first_replica",
        )  # fmt: skip

    def attack_objective(self, x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        logits = self.inference()
        return lambda candidates: losses.soft_margin(labels, logits(candidates))

    def perturb(
        self, x: Tensor, labels: Tensor, seed: Any, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        margin = self.attack_objective(x, labels)
        correct = ops.cast(margin(x) < 0, "float32")
        radius = ops.maximum(ops.take(self.margins, self._clipped(index)), self.min_margin)
        found = self.attack.maximise(margin, x, radius, seed)
        direction = (found - x) / per_example(radius, x)
        furthest = SEARCH_BEYOND * self.max_epsilon
        epsilon, boundary = bisection(margin, x, direction, radius, furthest, self.bisection_steps)
        perturbed = ops.where(per_example(correct, x) > 0, boundary, x)
        return ops.stop_gradient(perturbed), ops.stop_gradient(epsilon * correct)

    def remember(self, labels: Tensor, outputs: Outputs, real: Tensor) -> None:
        index, epsilon = self._clipped(outputs.index), outputs.epsilon
        # Sums of margins and of visits, over replicas: an example that is twice in a batch gets the mean.
        shape = (self.num_examples,)
        sums = distribution.all_reduce_sum(tf.scatter_nd(index[:, None], epsilon * real, shape))
        visits = distribution.all_reduce_sum(tf.scatter_nd(index[:, None], real, shape))
        self.margins.assign(ops.where(visits > 0, sums / ops.maximum(visits, 1.0), self.margins))

    def _clipped(self, index):
        """Returns the index clipped to its range; the guard reports a wrong one at the end of the step."""
        return ops.clip(index, 0, self.num_examples - 1)

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        return losses.mma(labels, outputs.natural, outputs.adversarial, outputs.epsilon, self.max_epsilon)

    def loss_terms(self, labels: Tensor, outputs: Outputs) -> dict[str, Tensor]:
        return {
            "natural_cross_entropy": losses.cross_entropy(labels, outputs.natural),
            "boundary_cross_entropy": losses.cross_entropy(labels, outputs.adversarial),
        }

    def _check_radii(self):
        if self.min_margin > self.max_epsilon:
            raise ValueError(
                "`min_margin` must not be larger than `max_epsilon`. "
                f"Received: max_epsilon={self.max_epsilon}, min_margin={self.min_margin}"
            )
        self.attack.threat.check_length(self.max_epsilon, "max_epsilon")

    def check_training_inputs(self, inputs: Any) -> None:
        self._check_radii()  # they may have been set since
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
            raise ValueError(
                "MMA keeps a margin for each example: its training data must be ((image, index), label[, weight]), "
                "as from `datasets.load(..., with_index=True)`. Received: data without an index."
            )
        if isinstance(inputs[1], tf.TypeSpec):  # each step checks its own
            return
        index = np.asarray(inputs[1])
        if index.min() < 0 or index.max() >= self.num_examples:
            raise ValueError(
                f"Indices must lie in [0, num_examples={self.num_examples}). "
                f"Received: indices from {index.min()} to {index.max()}"
            )

    def get_config(self) -> dict[str, Any]:
        names = ("num_examples", "max_epsilon", "min_margin", "bisection_steps")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
