"""Methods that are told something by a teacher: a second network, which is not trained."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, memory
from keras_mart.attacks.inference import inference, network_of
from keras_mart.methods import averaging, model


class TaughtModel(model.AdversarialModel):
    """A method with a teacher, of which it keeps a frozen copy: in evaluation mode, saved with the model.

    Args:
        network, attack: as in `AdversarialModel`.
        teacher: a trained Keras classifier that returns logits, wrapped or not; of a wrapped one the network that is
            judged.

    Raises:
        ValueError: a teacher that is none, that is a SavedModel, or that Keras cannot save and load; when fitted, one
            that takes other images or tells another number of classes.
    """

    def __init__(self, network, attack=None, *, teacher, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.teacher = _frozen(network_of(teacher))

    def taught(self, images):
        """Returns the teacher's [batch, classes] float32 logits on [batch, ...] images, without a gradient."""
        with keras.StatelessScope():  # activity regularisation of the teacher is no part of the loss
            return ops.stop_gradient(inference(self.teacher)(images))

    def frozen_networks(self):
        return [*super().frozen_networks(), self.teacher]

    def check_training_inputs(self, inputs):
        super().check_training_inputs(inputs)
        images, _ = checks.indexed(inputs)
        if isinstance(images, tf.TypeSpec):
            if None in images.shape[1:]:
                return
            images = np.zeros((1, *images.shape[1:]), "float32")
        checks.same_task(self.teacher, self.network, images, "the teacher")

    def get_config(self):
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
