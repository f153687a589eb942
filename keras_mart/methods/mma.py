"""Max-margin adversarial training."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, losses
from keras_mart.attacks.bisection import bisection
from keras_mart.methods import model
from keras_mart.methods.hyperparameter import POSITIVE, Hyperparameter
from keras_mart.threats import per_example

# The search looks a little beyond the hinge (official code, 1.05).
SEARCH_BEYOND = 1.05


@keras.saving.register_keras_serializable("keras_mart")
class MMA(model.AdversarialModel):
    """Max-margin adversarial training: cross-entropy at each example's own decision boundary.

    For an example with p_y > 1/2 the attack climbs the soft margin inside the example's margin of its last visit;
    a bisection along the direction found then gives the boundary and the new margin. Any other example has
    epsilon 0 and is trained on as it is. The loss is CE(p, y) / 3 + 2/3 CE at the boundary, the second term
    dropped where the boundary lies at or beyond `max_epsilon`.

    The training data are ((image, index), label[, weight]): `datasets.load(..., with_index=True)`.

    As in the official code, distances are told in the radius that the attack was given: where the image range cuts
    the perturbation short, in L2 above all, the boundary is nearer than its margin says.

    Differences: correctness and the bisection are judged in the `attack_mode`, by default in evaluation mode (the
    official code does both in training mode, the second by oversight), and the boundary image is clipped to [0, 1].

    Args:
        network, seed: as in `AdversarialModel`.
        attack: as in `AdversarialModel`; its step size scales with the margin: for the paper's steps of
            2.5 * epsilon / steps give it such a step size. Its own epsilon is used for validation only,
            where `val_loss` leaves out the boundary's term if that epsilon is not below `max_epsilon`.
        num_examples: number of training examples; indices lie in [0, num_examples).
        max_epsilon: the hinge d_max in input units; the paper uses 32/255 (CIFAR-10) and 0.45 (MNIST).
        min_margin: the smallest ball that is searched; the paper uses 0.005 (CIFAR-10), 0.1 (MNIST), 0.5 (L2).
        bisection_steps: halvings of the bisection.

    Raises:
        ValueError: arguments that are not positive; when fitted, data without indices or with indices too large.

    Reference: Ding et al., arXiv 1812.02637.
    """

    has_radius = False
    needs_index = True

    max_epsilon = Hyperparameter(*POSITIVE)
    min_margin = Hyperparameter(*POSITIVE)

    def __init__(
        self, network, attack=None, *, num_examples, max_epsilon, min_margin=0.005, bisection_steps=10, **kwargs
    ):
        super().__init__(network, attack, **kwargs)
        self.num_examples = num_examples
        self.max_epsilon = max_epsilon
        self.min_margin = min_margin
        self.bisection_steps = bisection_steps
        checks.positive_integer(num_examples, "num_examples")
        checks.positive_integer(bisection_steps, "bisection_steps")
        self._check_lengths()
        if getattr(attack, "leaves_ball", False):
            raise ValueError(f"`attack` must stay in the ball that MMA gives it. Received: attack={attack}")
        if not attack.threat.epsilon > 0:
            raise ValueError(f"`attack` must have a positive epsilon, which its steps scale with. Received: {attack}")
        self.margins = self.add_weight(
            shape=(num_examples,), trainable=False, dtype="float32", name="margins",
            initializer="zeros", aggregation="only_first_replica",
        )  # fmt: skip

    def attack_objective(self, x, labels):
        logits = self.inference()
        return lambda candidates: losses.soft_margin(labels, logits(candidates))

    def perturb(self, x, labels, seed, index=None):
        margin = self.attack_objective(x, labels)
        correct = ops.cast(margin(x) < 0, "float32")
        radius = ops.maximum(ops.take(self.margins, self._known(index)), self.min_margin)
        found = self.attack.maximise(margin, x, radius, seed)
        direction = (found - x) / per_example(radius, x)
        furthest = SEARCH_BEYOND * self.max_epsilon
        epsilon, boundary = bisection(margin, x, direction, radius, furthest, self.bisection_steps)
        kept = ops.where(per_example(correct, x) > 0, boundary, x)
        return ops.stop_gradient(kept), ops.stop_gradient(epsilon * correct)

    def remember(self, labels, outputs, real):
        index, epsilon = self._known(outputs.index), outputs.epsilon
        # Replicas add their parts of two dense vectors: an example met twice in a batch gets the mean.
        shape = (self.num_examples,)
        found = distribution.total(tf.scatter_nd(index[:, None], epsilon * real, shape))
        times = distribution.total(tf.scatter_nd(index[:, None], real, shape))
        self.margins.assign(ops.where(times > 0, found / ops.maximum(times, 1.0), self.margins))

    def _known(self, index):
        """The index where it is right; what is wrong stops training at the end of the step, not in the middle."""
        return ops.clip(index, 0, self.num_examples - 1)

    def training_loss(self, labels, outputs):
        return losses.mma(labels, outputs.natural, outputs.adversarial, outputs.epsilon, self.max_epsilon)

    def loss_terms(self, labels, outputs):
        return {
            "natural_cross_entropy": losses.cross_entropy(labels, outputs.natural),
            "boundary_cross_entropy": losses.cross_entropy(labels, outputs.adversarial),
        }

    def _check_lengths(self):
        if self.min_margin > self.max_epsilon:
            raise ValueError(
                "`min_margin` must not be larger than `max_epsilon`. "
                f"Received: max_epsilon={self.max_epsilon}, min_margin={self.min_margin}"
            )
        self.attack.threat.check_length(self.max_epsilon, "max_epsilon")

    def check_training_inputs(self, inputs):
        self._check_lengths()  # they may have been set
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
            raise ValueError(
                "MMA keeps a margin for each example: its training data must be ((image, index), label[, weight]), "
                "as `datasets.load(..., with_index=True)` gives. Received: data without an index."
            )
        if isinstance(inputs[1], tf.TypeSpec):  # each step looks at its own
            return
        index = np.asarray(inputs[1])
        if index.min() < 0 or index.max() >= self.num_examples:
            raise ValueError(
                f"Indices must lie in [0, num_examples={self.num_examples}). "
                f"Received: indices from {index.min()} to {index.max()}"
            )

    def get_config(self):
        names = ("num_examples", "max_epsilon", "min_margin", "bisection_steps")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
