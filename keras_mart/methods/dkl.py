"""The improved, decoupled Kullback-Leibler divergence."""

import keras
from keras import ops

from keras_mart import checks, distribution, losses
from keras_mart.methods import trades
from keras_mart.methods.hyperparameter import NOT_NEGATIVE, POSITIVE, Hyperparameter


@keras.saving.register_keras_serializable("keras_mart")
class DKL(trades.TRADES):
    """TRADES with its divergence decoupled into two terms, each with a weight of its own ("IKL-AT").

        CE(p, y) + alpha * CE(p held fixed, q) + beta / 4 * sum over i, j of m_i m_j ((z_i - z_j) - (z'_i - z'_j))^2

    where z, z' are the logits on x and x', and m is the mean of softmax(z / temperature) over the examples of the class
    y in the last epoch; in the first one it is uniform, and that of a class that was not met stays what it was. Epochs
    are counted as `fit` numbers them (`initial_epoch`). The attack climbs KL(p, q) with p held fixed.

    Differences: in the official code the ball grows from epoch to epoch until the last (`epsilon_schedule`), and its
    attack takes 5 steps of half its radius.

    Args:
        network, attack, seed: as in `TRADES`.
        alpha, beta: weights of the two terms; the official code has 4 and 20 on CIFAR-10.
        temperature: of the softmax whose means are taken; 4 there.

    Raises:
        ValueError: as in `TRADES`; weights that are negative, a temperature that is not positive.

    Reference: Cui et al., arXiv 2305.13948, and its code (github.com/jiequancui/DKL, DKLv1).
    """

    default_beta = 20.0

    alpha = Hyperparameter(*NOT_NEGATIVE)
    temperature = Hyperparameter(*POSITIVE)

    def __init__(self, network, attack=None, *, alpha=4.0, temperature=4.0, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.alpha, self.temperature = alpha, temperature
        self.summed_epoch = self._counter("summed_epoch")
        if self.built:
            self._count_classes()

    def build(self, input_shape):
        super().build(input_shape)
        if not hasattr(self, "class_means"):
            self._count_classes()

    def _count_classes(self):
        images = keras.KerasTensor(checks.input_shape(self.network))
        classes = self.network.compute_output_spec(images).shape[-1]
        options = {"shape": (classes, classes), "trainable": False, "aggregation": "only_first_replica"}
        self.class_means = self.add_weight(initializer=keras.initializers.Constant(1 / classes), **options)
        self.class_sums = self.add_weight(initializer="zeros", **options)

    def _means(self):
        """[classes, classes] the means of the last epoch, of which the sums may not be divided yet."""
        examples = ops.sum(self.class_sums, axis=-1, keepdims=True)
        met = ops.where(examples > 0, self.class_sums / ops.where(examples > 0, examples, 1.0), self.class_means)
        return ops.where(self.epoch == self.summed_epoch, self.class_means, met)

    def training_loss(self, labels, outputs):
        return losses.dkl(labels, outputs.natural, outputs.adversarial, self._means(), self.alpha, self.beta)

    def loss_terms(self, labels, outputs):
        return {
            "cross_entropy": losses.cross_entropy(labels, outputs.natural),
            "soft_cross_entropy": losses.soft_cross_entropy(outputs.natural, outputs.adversarial),
            "weighted_pair_distance": losses.weighted_pair_distance(labels, *outputs[:2], self._means()),
        }

    def remember(self, labels, outputs, real):
        shares = losses.shares(labels, outputs.natural.shape[-1]) * real[:, None]
        found = ops.matmul(ops.transpose(shares), ops.softmax(outputs.natural / self.temperature))
        before = ops.where(self.epoch == self.summed_epoch, self.class_sums, 0.0)
        self.class_means.assign(self._means())
        self.class_sums.assign(before + distribution.total(found))
        self.summed_epoch.assign(self.epoch)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "temperature": self.temperature}
