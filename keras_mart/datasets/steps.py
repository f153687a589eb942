"""Steps of augmentation: functions of [batch, height, width, channels] images in [0, 1] and a [2] seed.

They are made of Keras's preprocessing layers, whose random numbers come from the seed here, and each image may have a
step of its own.
"""

import keras
import tensorflow as tf


def apply_layer(layer, inputs, seed):
    """Returns what a Keras layer makes of a batch: a function of the seed only, whatever it has drawn before.

    Args:
        layer: a built Keras layer that draws from `keras.random.SeedGenerator`s of its own.
        inputs: images, or a dictionary of images and labels.
        seed: [2] integers.
    """
    weights = {id(weight) for weight in layer.weights}
    states = [variable for variable in layer.variables if id(variable) not in weights]  # of its seed generators
    seeds = tf.unstack(tf.random.split(seed, len(states)), len(states))
    with keras.StatelessScope(list(zip(states, seeds, strict=True))):
        return layer(inputs, training=True)


def layer_step(layer):
    """The step that a Keras layer takes."""
    return lambda images, seed: apply_layer(layer, images, seed)


def random_choice(steps):
    """The step that takes one of several with each image, all equally likely."""

    def step(images, seed):
        batch = tf.shape(images)[0]
        choice_seed, *seeds = tf.unstack(tf.random.split(seed, 1 + len(steps)))
        chosen = tf.random.stateless_uniform([batch], choice_seed, maxval=len(steps), dtype=tf.int32)
        places = tf.dynamic_partition(tf.range(batch), chosen, len(steps))
        parts = tf.dynamic_partition(images, chosen, len(steps))
        parts = [step(part, own) for step, part, own in zip(steps, parts, seeds, strict=True)]
        return tf.ensure_shape(tf.dynamic_stitch(places, parts), images.shape)

    return step


def sequence(*steps):
    """The step that takes one after the other."""

    def step(images, seed):
        for each, own in zip(steps, tf.unstack(tf.random.split(seed, len(steps))), strict=True):
            images = each(images, own)
        return images

    return step
