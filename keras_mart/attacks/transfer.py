"""Transfer, the black-box attack: adversarial examples made on another network."""

import dataclasses

import keras
import tensorflow as tf

from keras_mart import checks
from keras_mart.attacks.base import Attack
from keras_mart.attacks.inference import network_of


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Transfer(Attack):
    """An attack that is run on a source model; what it finds is judged on the model it is given.

    Usable wherever an attack is called on a model (`attack(model, x, labels)`, `keras_mart.evaluate`,
    `RobustAccuracy`); it is not serialised, since it holds a model. Training methods refuse it.

    Args:
        source: a Keras classifier that returns logits, wrapped or not: another architecture, or the same
            trained independently. `keras_mart.serving.load` gives one from a SavedModel.
        attack: the attack to run on it.

    Raises:
        ValueError: a source that returns no logits, or an attack that is none; when called, a source whose images or
            number of classes are not the model's.

    Reference: Papernot et al., arXiv 1602.02697; the MART paper's black-box table.
    """

    source: keras.Model
    attack: Attack

    # `Attack` compares by its fields, which are not these.
    __eq__, __hash__ = object.__eq__, object.__hash__

    def __init__(self, source, attack):
        if not isinstance(attack, Attack):
            raise ValueError(f"`attack` must be an attack such as keras_mart.PGD(...). Received: {attack!r}")
        checks.network(network_of(source))
        for name, value in {"source": source, "attack": attack, "threat": attack.threat}.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def __repr__(self):
        return f"Transfer(source={self.source.name}, attack={self.attack!r})"

    @property
    def gradients(self):
        return None if self.attack.skips_misclassified and self.attack.gradients != 0 else self.attack.gradients

    def check_images(self, shape):
        self.attack.check_images(shape)

    def check_task(self, network, images):
        if not tf.is_symbolic_tensor(images):
            checks.same_task(network_of(self.source), network, images)
        super().check_task(network, images)

    def in_round(self, network, images, labels, seeds, number=0, candidates=None):
        return self.attack.on_network(network_of(self.source), images, labels, seeds)

    def get_config(self):
        raise ValueError("A Transfer attack holds a model and is not serialised.")
