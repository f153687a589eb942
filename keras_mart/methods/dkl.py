"""The decoupled Kullback-Leibler divergence (DKL) in its improved form (IKL)."""

from typing import Any

import keras
from keras import ops

from keras_mart import checks, distribution, losses
from keras_mart.attacks.base import Attack
from keras_mart.methods import trades
from keras_mart.methods.batch import Outputs
from keras_mart.methods.hyperparameter import NOT_NEGATIVE, POSITIVE, Hyperparameter
from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
class DKL(trades.TRADES):
    """TRADES with its divergence decoupled into two terms with separate weights ("IKL-AT").

        CE(p, y) + alpha * CE(p held fixed, q) + beta / 4 * sum over i, j of m_i m_j ((z_i - z_j) - (z'_i - z'_j))^2

    where z, z' are the logits on x and x', and m is the mean of softmax(z / temperature) over all examples of class y
    in the previous epoch. In the first epoch m is uniform; the mean of a class without examples does not change.
    Epochs are numbered as in `fit` (`initial_epoch`). The attack climbs KL(p, q) with p held fixed.

    Differences: in the official code the ball grows from epoch to epoch until the last (`epsilon_schedule`), and its
    attack takes 5 steps of half its radius.

    Args:
        network, attack, seed: as in `TRADES`.
        alpha, beta: weights of the two terms; 4 and 20 in the official code for CIFAR-10.
        temperature: temperature of the softmax that is averaged; 4 in the official code.

    Raises:
        ValueError: as in `TRADES`; a weight is negative, or the temperature is not positive.

    Reference: Cui et al., arXiv 2305.13948, and its code (github.com/jiequancui/DKL, DKLv1).
    """

    default_beta = 20.0

    alpha = Hyperparameter(*NOT_NEGATIVE)
    temperature = Hyperparameter(*POSITIVE)

    def __init__(
        self,
        network: keras.Model,
        attack: Attack | None = None,
        *,
        alpha: float = 4.0,
        temperature: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, attack, **kwargs)
        self.alpha, self.temperature = alpha, temperature
        self.summed_epoch = self._counter("summed_epoch")
        if self.built:
            self._add_class_means()

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if not hasattr(self, "class_means"):
            self._add_class_means()

    def _add_class_means(self):
        images = keras.KerasTensor(checks.input_shape(self.network))
        classes = self.network.compute_output_spec(images).shape[-1]
        options = {"shape": (classes, classes), "trainable": False, "aggregation": "only_first_replica"}
        self.class_means = self.add_weight(initializer=keras.initializers.Constant(1 / classes), **options)
        self.class_sums = self.add_weight(initializer="zeros", **options)

    def _means(self):
        """Returns the [classes, classes] means of the previous epoch.

        In the first step of an epoch `class_sums` still has the sums of the previous one.
        """
        examples = ops.sum(self.class_sums, axis=-1, keepdims=True)
        means = ops.where(examples > 0, self.class_sums / ops.where(examples > 0, examples, 1.0), self.class_means)
        return ops.where(self.epoch == self.summed_epoch, self.class_means, means)

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        return losses.dkl(labels, outputs.natural, outputs.adversarial, self._means(), self.alpha, self.beta)

    def loss_terms(self, labels: Tensor, outputs: Outputs) -> dict[str, Tensor]:
        return {
            "cross_entropy": losses.cross_entropy(labels, outputs.natural),
            "soft_cross_entropy": losses.soft_cross_entropy(outputs.natural, outputs.adversarial),
            "weighted_pair_distance": losses.weighted_pair_distance(labels, *outputs[:2], self._means()),
        }

    def remember(self, labels: Tensor, outputs: Outputs, real: Tensor) -> None:
        shares = losses.shares(labels, outputs.natural.shape[-1]) * real[:, None]
        sums = ops.matmul(ops.transpose(shares), ops.softmax(outputs.natural / self.temperature))
        before = ops.where(self.epoch == self.summed_epoch, self.class_sums, 0.0)
        self.class_means.assign(self._means())
        self.class_sums.assign(before + distribution.all_reduce_sum(sums))
        self.summed_epoch.assign(self.epoch)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "temperature": self.temperature}
