"""The image operations of AutoAugment and its successors, with Keras's layers where these act on each image separately.

Each function returns a step or a list of steps (`steps.py`). A ratio of 1 keeps the image. `strength` is the largest
strength, relative to AutoAugment's largest (Cubuk et al., arXiv 1805.09501); each image's own is uniform up to it, in
either direction.
"""

import keras
import tensorflow as tf

from keras_mart.datasets.steps import layer_step

LAYER = {"dtype": "float32", "data_format": "channels_last"}
COLOUR = {"value_range": (0, 1), **LAYER}
SHAPE = {"fill_mode": "constant", "interpolation": "nearest", "seed": 0, **LAYER}
ROTATION, SHEAR, TRANSLATION, RATIO, BITS = 30 / 360, 0.3, 0.45, 0.9, 4


def ratios(saturation, brightness, contrast, sharpness):
    """Returns steps that change saturation, brightness, contrast and sharpness.

    Each argument is the (lowest, highest) ratio of a blend with an image without colour, light, contrast or edges.
    Saturation needs 1 or 3 channels. Contrast keeps the mean of each channel, where PIL and torchvision keep that of
    the grey image.
    """

    def light(images, seed):
        return images * tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed, *brightness)

    layers = keras.layers
    return [
        layer_step(layers.RandomColorDegeneration((1 - saturation[1], 1 - saturation[0]), seed=0, **COLOUR)),
        lambda images, seed: tf.minimum(light(images, seed), 1),
        layer_step(layers.RandomContrast((1 - contrast[0], contrast[1] - 1), seed=0, **COLOUR)),
        layer_step(layers.RandomSharpness((sharpness[0] / 2, sharpness[1] / 2), seed=0, **COLOUR)),
    ]


def symmetric_ratios(strength):
    """Returns the steps of `ratios`, each with ratios from 1 - 0.9 strength to 1 + 0.9 strength."""
    return ratios(*[(1 - RATIO * strength, 1 + RATIO * strength)] * 4)


def histograms():
    """Returns autocontrast and equalisation, the latter image by image: Keras's layer treats a batch as one image."""
    contrast, equalization = keras.layers.AutoContrast(**COLOUR), keras.layers.Equalization(**COLOUR)
    return [layer_step(contrast), lambda images, seed: tf.map_fn(equalization, images)]


def quantisations(strength):
    """Returns posterisation and solarisation.

    Posterisation keeps fewer bits, 4 at the largest strength; solarisation inverts values above a threshold.
    Keras's `Solarization` ignores the lower bound of its thresholds, and draws them from 0 on (3.15).
    """

    def solarize(images, seed):
        threshold = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed, 1 - strength, 1)
        return tf.where(images < threshold, images, 1 - images)

    bits = 8 - round(BITS * strength), 8  # the upper bound is exclusive
    return [layer_step(keras.layers.RandomPosterization(bits, seed=0, **COLOUR)), solarize]


def shears(least, most):
    """Returns shears along rows and along columns, by fractions of the image, with the upper left corner fixed."""
    bounds = least, most
    return [layer_step(keras.layers.RandomShear(**{axis: bounds}, **SHAPE)) for axis in ("x_factor", "y_factor")]


def rotation(most):
    """Returns a rotation by up to a fraction of the full circle."""
    return layer_step(keras.layers.RandomRotation(most, **SHAPE))


def geometric(strength):
    """Returns rotation, shears and translations, which fill with zeros."""
    most = strength * TRANSLATION
    translations = [keras.layers.RandomTranslation(*factors, **SHAPE) for factors in ((0.0, most), (most, 0.0))]
    return [rotation(strength * ROTATION), *shears(0.0, strength * SHEAR), *map(layer_step, translations)]
