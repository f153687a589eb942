"""Transfer, a black-box attack with adversarial examples of another network."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from keras_mart import checks
from keras_mart.attacks.base import Attack
from keras_mart.attacks.inference import network_of
from keras_mart.typing import Shape, Tensor


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Transfer(Attack):
    """Runs an attack on a source model, to attack another model with the images found.

    Usable wherever an attack is called on a model (`attack(model, x, labels)`, `keras_mart.evaluate`,
    `RobustAccuracy`). It cannot be serialised, since it holds a model, and training methods do not accept it.

    Args:
        source: a Keras classifier that returns logits, wrapped or not: another architecture, or the same one trained
            independently. `keras_mart.serving.load` loads one from a SavedModel.
        attack: the attack to run on it.

    Raises:
        ValueError: a source that does not return logits, or `attack` is not an `Attack`; when called, a source whose
            images or number of classes differ from the model's.

    Reference: Papernot et al., arXiv 1602.02697; the MART paper's black-box table.
    """

    source: keras.Model
    attack: Attack

    # `Attack` compares by fields; a model is only equal to itself.
    __eq__, __hash__ = object.__eq__, object.__hash__

    def __init__(self, source: keras.Model, attack: Attack):
        if not isinstance(attack, Attack):
            raise ValueError(f"`attack` must be an attack such as keras_mart.PGD(...). Received: {attack!r}")
        checks.network(network_of(source))
        for name, value in {"source": source, "attack": attack, "threat": attack.threat}.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def __repr__(self):
        return f"Transfer(source={self.source.name}, attack={self.attack!r})"

    @property
    def gradients(self) -> int | None:
        return None if self.attack.skips_misclassified and self.attack.gradients != 0 else self.attack.gradients

    def check_images(self, shape: Shape) -> None:
        self.attack.check_images(shape)

    def check_task(self, network: keras.Model, images: Tensor) -> None:
        if not tf.is_symbolic_tensor(images):
            checks.same_task(network_of(self.source), network, images)
        super().check_task(network, images)

    def in_round(
        self, network: keras.Model, images: Tensor, labels: Tensor, seeds: Tensor,
        number: int = 0, candidates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return self.attack.on_network(network_of(self.source), images, labels, seeds)

    def get_config(self) -> dict[str, Any]:
        raise ValueError("A Transfer attack holds a model and cannot be serialised.")
