"""Gradient clipping that means on several replicas what it means on one."""

import keras
import tensorflow as tf

from keras_mart import distribution


def of_whole_batch(optimizer, gradients):
    """Gradients of which the optimizer makes the whole batch's, clipped; where nothing is clipped, what it is given.

    Keras clips each replica's part by itself and adds the parts afterwards, so that their sum may exceed the limit as
    many times as there are replicas. Here the parts are added and clipped first, and each replica gets an equal share
    of that, which lies within the limit.

    Args:
        optimizer: a Keras optimizer.
        gradients: this replica's part of the gradients, scaled as `optimizer.scale_loss` does; `None` among them stays.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    clipping = getattr(optimizer, "inner_optimizer", optimizer)
    if replicas == 1 or not (clipping.clipnorm or clipping.global_clipnorm or clipping.clipvalue):
        return gradients
    scale = keras.ops.cast(optimizer.scale_loss(1.0), "float32")
    there = {number: each for number, each in enumerate(gradients) if each is not None}
    whole = distribution.total({number: each / tf.cast(scale, each.dtype) for number, each in there.items()})
    clipped = clipping._clip_gradients(list(whole.values()))  # private: the three limits are applied in no other place
    shares = {number: each * tf.cast(scale / replicas, each.dtype) for number, each in zip(whole, clipped, strict=True)}
    return [shares.get(number) for number in range(len(gradients))]
