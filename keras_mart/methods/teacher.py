"""Base class of methods that use a teacher: a second network, which is not trained."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, memory
from keras_mart.attacks.base import Attack
from keras_mart.attacks.inference import inference, network_of
from keras_mart.methods import averaging, model
from keras_mart.typing import ArrayLike, Tensor


class TeacherGuidedModel(model.AdversarialModel):
    """Base class of methods with a teacher. The model keeps and saves a frozen copy, used in evaluation mode.

    Args:
        network, attack: as in `AdversarialModel`.
        teacher: a trained Keras classifier that returns logits, or a wrapped model, of which `judged_network` is used.

    Raises:
        ValueError: the teacher is not a classifier that returns logits, is a SavedModel, or cannot be saved and loaded
            by Keras; in `fit`, it takes other images or has another number of classes than the network.
    """

    def __init__(
        self, network: keras.Model, attack: Attack | None = None, *, teacher: keras.Model, **kwargs: Any
    ) -> None:
        super().__init__(network, attack, **kwargs)
        self.teacher = _frozen(network_of(teacher))

    def teacher_logits(self, images: ArrayLike) -> Tensor:
        """Returns the teacher's [batch, classes] float32 logits on [batch, ...] images, without a gradient."""
        with keras.StatelessScope():  # keeps the teacher's activity regularisation out of the loss
            return ops.stop_gradient(inference(self.teacher)(images))

    def frozen_networks(self) -> list[keras.Model]:
        return [*super().frozen_networks(), self.teacher]

    def check_training_inputs(self, inputs: Any) -> None:
        super().check_training_inputs(inputs)
        images, _ = checks.indexed(inputs)
        if isinstance(images, tf.TypeSpec):
            if None in images.shape[1:]:
                return
            images = np.zeros((1, *images.shape[1:]), "float32")
        checks.same_task(self.teacher, self.network, images, "the teacher")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "teacher": keras.saving.serialize_keras_object(self.teacher)}


def _frozen(teacher):
    try:
        checks.network(teacher)
    except ValueError as error:
        raise ValueError(f"`teacher` must be a classifier that returns logits: {error}") from error
    if any(isinstance(each, keras.layers.TFSMLayer) for each in memory.layers(teacher)):
        raise ValueError(f"`teacher` must be kept in the model's file, which no SavedModel can. Received: {teacher}")
    copy = averaging.frozen_copy(teacher, "`teacher` is kept as a second network.")
    if copy is None:
        raise ValueError(f"`teacher` must be trained. Received: {teacher}, which is not even built")
    return copy
