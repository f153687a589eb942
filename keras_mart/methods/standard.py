"""Standard training, without an adversary."""

from typing import Any

import keras

from keras_mart import losses
from keras_mart.methods import model
from keras_mart.methods.batch import Outputs
from keras_mart.typing import Tensor


@keras.saving.register_keras_serializable("keras_mart")
class Standard(model.AdversarialModel):
    """Standard training: CE(p, y) on natural images. It has no attack and no adversarial metrics.

    Args:
        network: a Keras classifier that returns logits.
        seed: as in `AdversarialModel`.
    """

    has_adversary = has_radius = False

    def __init__(self, network: keras.Model, *, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(network, None, seed=seed, **kwargs)

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        return losses.cross_entropy(labels, outputs.natural)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["attack"]
        return config
