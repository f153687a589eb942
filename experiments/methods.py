"""Training methods that only the figures use: AT that treats chosen examples differently, ablations of MART."""

import keras
import numpy as np
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import FGSM
from keras_mart.methods import MART, TRADES
from keras_mart.methods.weighted import WeightedModel
from keras_mart.threats import per_example

TREATMENTS = ("natural", "fgsm", "regularised")
ALTERATIONS = ("no_weight", "no_kl", "no_weight_no_kl", "ce", "natural_bce", "kl_attack")


def _numbers(path):
    """Returns [chosen] integers, the indices of training examples that a file contains."""
    with np.load(path, allow_pickle=False) as file:
        return file["chosen"]


@keras.saving.register_keras_serializable("experiments")
class Split(WeightedModel):
    """Adversarial training that treats chosen training examples differently (the paper's figure 1).

    "natural" leaves them unperturbed, "fgsm" perturbs them in one step, "regularised" adds beta * KL(p, q) to their
    loss. Only "regularised" forwards the natural images in training mode.

    Args:
        network, attack, beta: as in `WeightedModel`.
        chosen: path of an npz file with the indices of the chosen examples as `chosen`.
        treatment: "natural", "fgsm" or "regularised".
        num_examples: number of training examples.
    """

    needs_index = True
    default_beta = 5.0

    def __init__(self, network, attack=None, *, chosen, treatment, num_examples, **kwargs):
        super().__init__(network, attack, **kwargs)
        checks.one_of(treatment, TREATMENTS, "treatment")
        self.chosen = chosen
        self.treatment = treatment
        self.num_examples = num_examples
        self.trains_on_natural = treatment == "regularised"
        self._is_chosen = np.zeros(num_examples, "float32")
        self._is_chosen[_numbers(chosen)] = 1.0

    def perturb(self, x, labels, seed, index=None):
        found, epsilon = super().perturb(x, labels, seed)
        if self.treatment == "regularised":
            return found, epsilon
        other = x
        if self.treatment == "fgsm":
            other = FGSM(self.attack.threat).maximise(self.attack_objective(x, labels), x)
        return ops.where(per_example(self._chosen_mask(index), x) > 0, other, found), epsilon

    def training_loss(self, labels, outputs):
        value = losses.cross_entropy(labels, outputs.adversarial)
        if self.treatment == "regularised" and outputs.index is not None:
            regularisation = losses.kl_divergence(outputs.natural, outputs.adversarial)
            value += self.beta * self._chosen_mask(outputs.index) * regularisation
        return value

    def _chosen_mask(self, index):
        return ops.take(ops.convert_to_tensor(self._is_chosen), index)

    def get_config(self):
        own = {name: getattr(self, name) for name in ("chosen", "treatment", "num_examples")}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("experiments")
class Altered(MART):
    """MART with one of its parts removed or replaced (the paper's figure 2, a and b).

    "no_weight": BCE(q, y) + beta * KL(p, q). "no_kl": BCE(q, y) + beta * (1 - p_y). "no_weight_no_kl": BCE(q, y).
    "ce" and "natural_bce" replace BCE(q, y) by CE(q, y) and BCE(p, y); with "kl_attack" the attack climbs KL(p, q).
    """

    def __init__(self, network, attack=None, *, alteration, **kwargs):
        super().__init__(network, attack, **kwargs)
        checks.one_of(alteration, ALTERATIONS, "alteration")
        self.alteration = alteration

    def attack_objective(self, x, labels):
        if self.alteration != "kl_attack":
            return super().attack_objective(x, labels)
        return TRADES.attack_objective(self, x, labels)

    def training_loss(self, labels, outputs):
        natural, adversarial = outputs.natural, outputs.adversarial
        first = losses.boosted_cross_entropy(labels, natural if self.alteration == "natural_bce" else adversarial)
        if self.alteration == "ce":
            first = losses.cross_entropy(labels, adversarial)
        if self.alteration == "no_weight_no_kl":
            return first
        weight = 1.0 if self.alteration == "no_weight" else losses.misclassification_weight(labels, natural)
        divergence = 1.0 if self.alteration == "no_kl" else losses.kl_divergence(natural, adversarial)
        return first + self.beta * weight * divergence

    def get_config(self):
        return {**super().get_config(), "alteration": self.alteration}


@keras.saving.register_keras_serializable("experiments")
class Partial(MART):
    """MART whose second term applies only to a share of the training examples (the paper's figure 2, c).

    Args:
        network, attack, beta: as in `MART`.
        share: in [0, 1]; examples are chosen by a fixed permutation, so that a larger share contains a smaller one.
        num_examples: number of training examples.
    """

    needs_index = True

    def __init__(self, network, attack=None, *, share, num_examples, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.share = share
        self.num_examples = num_examples
        order = np.random.RandomState(0).permutation(num_examples)
        self._is_regularised = (order < round(share * num_examples)).astype("float32")

    def training_loss(self, labels, outputs):
        first = losses.boosted_cross_entropy(labels, outputs.adversarial)
        second = losses.mart(labels, outputs.natural, outputs.adversarial, self.beta) - first
        if outputs.index is None:
            return first + second
        return first + ops.take(ops.convert_to_tensor(self._is_regularised), outputs.index) * second

    def get_config(self):
        return {**super().get_config(), "share": self.share, "num_examples": self.num_examples}


OWN = {"split": Split, "altered": Altered, "partial": Partial}
