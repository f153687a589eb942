"""Robust soft label adversarial distillation (RSLAD)."""

from collections.abc import Callable
from typing import Any

import keras

from keras_mart import losses
from keras_mart.attacks.base import Attack
from keras_mart.methods import teacher
from keras_mart.methods.batch import Outputs
from keras_mart.methods.hyperparameter import Hyperparameter
from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
class RSLAD(teacher.TeacherGuidedModel):
    """Robust soft label adversarial distillation (RSLAD): trains a small network to match a robust teacher.

        (1 - alpha) * KL(t, p) + alpha * KL(t, q),  t = softmax(the teacher's logits on x)

    The attack climbs KL(t, q) with t held fixed. Labels are not used.

    Differences: the official code also divides the loss by the number of classes (for CIFAR-10 only): its learning rate
    of 0.1 with weight decay of 2e-4 corresponds to 0.01 with 2e-3 here. It forwards the adversarial batch first, and
    adds 1e-5 inside a logarithm.

    Args:
        network, attack, seed: as in `AdversarialModel`; the official attack is PGD with 10 steps of 2/255 from a
            Gaussian start.
        teacher: an adversarially trained network, a Keras classifier that returns logits.
        alpha: weight of the adversarial images, in [0, 1].

    Raises:
        ValueError: `alpha` is outside [0, 1]; as in `TeacherGuidedModel`.

    Reference: Zi et al., arXiv 2108.07969, and its code (github.com/zibojia/RSLAD).
    """

    alpha = Hyperparameter("between 0 and 1", lambda value: 0 <= value <= 1)

    def __init__(
        self, network: keras.Model, attack: Attack | None = None, *, alpha: float = 5 / 6, **kwargs: Any
    ) -> None:
        super().__init__(network, attack, **kwargs)
        self.alpha = alpha

    def attack_objective(self, x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        logits, target = self.inference(), self.teacher_logits(x)
        return lambda candidates: losses.kl_divergence(target, logits(candidates))

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        target = self.teacher_logits(outputs.images)
        return losses.rslad(labels, outputs.natural, outputs.adversarial, target, self.alpha)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha}
