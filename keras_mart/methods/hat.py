"""Helper-based adversarial training (HAT)."""

from typing import Any

import keras
from keras import ops

from keras_mart import losses
from keras_mart.attacks.base import Attack
from keras_mart.methods import teacher, trades
from keras_mart.methods.batch import Outputs
from keras_mart.methods.hyperparameter import NOT_NEGATIVE, POSITIVE, Hyperparameter
from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
class HAT(teacher.TeacherGuidedModel, trades.TRADES):
    """Helper-based adversarial training (HAT): TRADES + gamma * CE on helper images beyond the adversarial ones.

        CE(p, y) + beta * KL(p, q) + gamma * CE(softmax(logits on x + helper_scale * (x' - x)), k)

    where k is the class that the teacher, a network trained without an adversary, predicts for x'. Following the
    teacher beyond the ball avoids margins that are larger than necessary and cost natural accuracy. As in the official
    code, the helper image is not clipped to [0, 1]; it takes a third forward pass in training mode. The attack climbs
    KL(p, q) with p held fixed.

    Differences: the official code's variant with CE(q, y) in place of the divergence (`--robust-loss=ce`) is missing.

    Args:
        network, attack, seed: as in `TRADES`.
        teacher: a network trained without an adversary, a Keras classifier that returns logits.
        beta: weight of the divergence; in the official code 2.5 for ResNet-18, and 3.5 with extra data.
        gamma: weight of the helper's cross-entropy.
        helper_scale: distance of the helper image, 1 being that of the adversarial image; the official commands use 2
            (the function's own default, 3.5, is never used there).

    Raises:
        ValueError: as in `TRADES`; as in `TeacherGuidedModel`.

    Reference: Rade and Moosavi-Dezfooli, ICLR 2022, arXiv 2203.13639, and its code (github.com/imrahulr/hat).
    """

    default_beta = 2.5

    gamma = Hyperparameter(*NOT_NEGATIVE)
    helper_scale = Hyperparameter(*POSITIVE)

    def __init__(
        self,
        network: keras.Model,
        attack: Attack | None = None,
        *,
        gamma: float = 0.5,
        helper_scale: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, attack, **kwargs)
        self.gamma, self.helper_scale = gamma, helper_scale

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        helper = outputs.forward(outputs.images + self.helper_scale * (outputs.perturbed - outputs.images))
        target = ops.argmax(self.teacher_logits(outputs.perturbed), axis=-1)
        return losses.hat(labels, outputs.natural, outputs.adversarial, helper, target, self.beta, self.gamma)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma, "helper_scale": self.helper_scale}
