"""Clean logit pairing, in the MART paper's form and in its own."""

import keras
from keras import ops

from keras_mart import losses, randomness
from keras_mart.methods import weighted

# Standard deviation of the noise in Kannan et al., images in [0, 1].
SIGMA = 0.5


@keras.saving.register_keras_serializable("keras_mart")
class CLP(weighted.PairingModel):
    """Clean logit pairing: cross-entropy + beta * a squared distance of outputs.

    With `form="original"` the training images are natural ones with Gaussian noise, clipped to [0, 1], and the
    attack only serves the adversarial metrics of validation: `adversarial_accuracy` during training is then the
    accuracy under noise, and `val_loss` pairs adversarial images. Replicas keep the pairs where each of them gets an
    even number of examples; the parts of a step (`accumulate`) keep them always.

    Args:
        network, attack, seed: as in `AdversarialModel`.
        beta: weight of the distance.
        form: "mart" for CE(p, y) and the distance of natural and adversarial probabilities, as the MART paper
            tabulates it; "original" for CE on noisy images and the distance of the logits of pairs of examples,
            as Kannan et al. have it.

    Reference: Kannan et al., arXiv 1803.06373; Wang et al., ICLR 2020, table 1.
    """

    def __init__(self, network, attack=None, **kwargs):
        super().__init__(network, attack, **kwargs)
        if self.form == "original" and self.epsilon_schedule is not None:
            raise ValueError(
                "`epsilon_schedule` has no effect on noise. "
                f"Received: form='original', epsilon_schedule={self.epsilon_schedule!r}"
            )

    @property
    def trains_on_natural(self):
        return self.form == "mart"

    @property
    def pairs_neighbours(self):
        return self.form == "original"

    def perturb(self, x, labels, seed, index=None):
        if self.form == "mart":
            return super().perturb(x, labels, seed, index)
        noise = SIGMA * randomness.normal(ops.shape(x), seed)
        return ops.clip(x + noise, 0.0, 1.0), self.attack.threat.epsilon

    def training_loss(self, labels, outputs):
        loss = losses.clp if self.form == "mart" else losses.clp_original
        return loss(labels, outputs.natural, outputs.adversarial, self.beta)

    def loss_terms(self, labels, outputs):
        if self.form == "original":  # the rest of the loss is the pairing
            return {"cross_entropy": losses.cross_entropy(labels, outputs.adversarial)}
        return {
            "cross_entropy": losses.cross_entropy(labels, outputs.natural),
            "squared_distance_of_logits": losses.squared_distance(outputs.natural, outputs.adversarial),
        }
