"""Standard training: no adversary."""

import keras

from keras_mart import losses
from keras_mart.methods import model


@keras.saving.register_keras_serializable("keras_mart")
class Standard(model.AdversarialModel):
    """Standard training: CE(p, y) on natural images. It has no attack and no adversarial metrics.

    Args:
        network: a Keras classifier that returns logits.
        seed: as in `AdversarialModel`.
    """

    has_adversary = has_radius = False

    def __init__(self, network, *, seed=None, **kwargs):
        super().__init__(network, None, seed=seed, **kwargs)

    def training_loss(self, labels, outputs):
        return losses.cross_entropy(labels, outputs.natural)

    def get_config(self):
        config = super().get_config()
        del config["attack"]
        return config
