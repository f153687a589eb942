"""Augmentations that draw operations for each image, RandAugment, AugMix and IDBH; and random erasing.

Each function returns a step (`steps.py`).
"""

import keras
import tensorflow as tf

from keras_mart.datasets import cropping, operations
from keras_mart.datasets.steps import layer_step, random_choice, sequence

RANDAUGMENT_OPERATIONS, RANDAUGMENT_STRENGTH = 2, 0.5
AUGMIX_CHAINS, AUGMIX_DEPTH, AUGMIX_STRENGTH = 3, 3, 0.3


def randaugment():
    """Applies two of 14 operations, with strengths up to half of the largest (Cubuk et al., arXiv 1909.13719).

    `keras.layers.RandAugment` is not used: it draws two operations for a whole batch, computes all of them, rotates
    images by up to half a circle in one direction, and keeps 1 to 3 bits of a colour (3.15, its default factor).
    """
    half = RANDAUGMENT_STRENGTH
    choices = [
        lambda images, seed: images,
        *operations.histograms(),
        *operations.quantisations(half),
        *operations.symmetric_ratios(half),
        *operations.geometric(half),
    ]
    return sequence(*[random_choice(choices)] * RANDAUGMENT_OPERATIONS)


def augmix():
    """Mixes the image and three chains of one to three of 9 operations (Hendrycks et al., arXiv 1912.02781).

    The weights of the chains are Dirichlet(1, 1, 1), and that of the image is uniform. The paper's loss on three views
    of an image is not included. `keras.layers.AugMix` is not used: it draws its operations with Python's `random` when
    it is traced, so that in `tf.data` all batches get the same operations, without a seed (3.15).
    """
    strength = AUGMIX_STRENGTH
    operation = random_choice(
        [*operations.histograms(), *operations.quantisations(strength), *operations.geometric(strength)]
    )

    def step(images, seed):
        each = tf.shape(images)[0], 1, 1, 1
        weight_seed, share_seed, depth_seed, *seeds = tf.unstack(tf.random.split(seed, 3 + AUGMIX_DEPTH))
        depths = tf.random.stateless_uniform(
            [AUGMIX_CHAINS * each[0], *each[1:]], depth_seed, 1, AUGMIX_DEPTH + 1, tf.int32
        )
        chains = tf.tile(images, [AUGMIX_CHAINS, 1, 1, 1])
        for depth, own in enumerate(seeds):
            chains = tf.where(depth < depths, operation(chains, own), chains)
        weights = tf.random.stateless_gamma([AUGMIX_CHAINS, *each], weight_seed, 1.0)
        weights /= tf.reduce_sum(weights, 0)
        mixture = tf.add_n(
            [weight * chain for weight, chain in zip(tf.unstack(weights), tf.split(chains, AUGMIX_CHAINS), strict=True)]
        )
        share = tf.random.stateless_uniform(each, share_seed)
        return share * images + (1 - share) * mixture

    return step


def idbh():
    """IDBH for CIFAR-10, strong variant: mirroring, cropshift, one of 8 changes of colour or shape, random erasing.

    The weak variant erases only in half of the images. Differences from the official code: Keras's contrast
    (`operations.ratios`) and equalisation (which differs by a few of 255 levels); zeros around the image when its edges
    are sharpened; shears about the corner instead of the centre; rotations by less than 1 degree are included; and the
    height and width of an erased part are independent, with the same areas but aspect ratios from 0.25 to 4 instead of
    0.3 to 3.3. For image sizes other than 32 pixels, cropshift removes rows and columns in proportion.

    Reference: Li and Spratling, arXiv 2301.09879.
    """
    wide, bright = (0.1, 1.9), (0.5, 1.9)
    changes = [
        *operations.ratios(saturation=wide, brightness=bright, contrast=bright, sharpness=wide),
        *operations.histograms(),
        random_choice(operations.shears(0.05, 0.15)),
        operations.rotation(10 / 360),
    ]
    return sequence(
        cropping.mirrored, cropping.cropshift, random_choice(changes), _erasing(probability=1.0, fill_value=0.0)
    )


def erasing():
    """Replaces a random part of half of the images by noise clipped to [0, 1] (Zhong et al., 1708.04896)."""
    return _erasing(probability=0.5)


def _erasing(probability, **options):
    layer = keras.layers.RandomErasing((probability, probability), seed=0, **options, **operations.COLOUR)
    return layer_step(layer)
