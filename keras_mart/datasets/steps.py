"""Augmentation steps: functions of [batch, height, width, channels] images in [0, 1] and a [2] seed.

Keras's preprocessing layers become steps that draw their random numbers from the seed. Each image of a
batch can get a different step.
"""

import keras
import tensorflow as tf


def apply_layer(layer, inputs, seed):
    """Calls a Keras layer on a batch with random numbers that depend only on the seed, not on earlier calls.

    Args:
        layer: a built Keras layer that draws from its own `keras.random.SeedGenerator`s.
        inputs: images, or a dictionary of images and labels.
        seed: [2] integers.
    """
    weights = {id(weight) for weight in layer.weights}
    states = [variable for variable in layer.variables if id(variable) not in weights]  # the seed generators' states
    seeds = tf.unstack(tf.random.split(seed, len(states)), len(states))
    with keras.StatelessScope(list(zip(states, seeds, strict=True))):
        return layer(inputs, training=True)


def layer_step(layer):
    """Returns the step that calls a Keras layer."""
    return lambda images, seed: apply_layer(layer, images, seed)


def random_choice(steps):
    """Returns a step that applies one of several steps to each image, all with equal probability."""

    def step(images, seed):
        batch = tf.shape(images)[0]
        choice_seed, *seeds = tf.unstack(tf.random.split(seed, 1 + len(steps)))
        chosen = tf.random.stateless_uniform([batch], choice_seed, maxval=len(steps), dtype=tf.int32)
        positions = tf.dynamic_partition(tf.range(batch), chosen, len(steps))
        parts = tf.dynamic_partition(images, chosen, len(steps))
        parts = [step(part, own) for step, part, own in zip(steps, parts, seeds, strict=True)]
        return tf.ensure_shape(tf.dynamic_stitch(positions, parts), images.shape)

    return step


def sequence(*steps):
    """Returns a step that applies several steps in order."""

    def step(images, seed):
        for each, own in zip(steps, tf.unstack(tf.random.split(seed, len(steps))), strict=True):
            images = each(images, own)
        return images

    return step
