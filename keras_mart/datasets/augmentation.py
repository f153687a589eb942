"""Random pad-and-crop and horizontal flip of a whole batch at once."""

import tensorflow as tf

AUGMENTATIONS = ("crop_flip", "crop")
PADDING = 4  # pixels on each side: the CIFAR-10 recipe of MART, TRADES and AT


def crop(images, seed, flip):
    """Shifts each image by up to `PADDING` pixels either way, zeros coming in, and mirrors a random half.

    Args:
        images: [batch, height, width, channels] of any dtype.
        seed: [2] integers; the same seed gives the same crops.
        flip: whether to mirror.
    """
    batch, (height, width) = tf.shape(images)[0], images.shape[1:3]
    shift_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    shift = tf.random.stateless_uniform([batch, 2], shift_seed, maxval=2 * PADDING + 1, dtype=tf.int32)
    rows = shift[:, :1] + tf.range(height)  # [batch, height]
    columns = tf.range(width)
    if flip:
        mirrored = tf.random.stateless_uniform([batch, 1], flip_seed) < 0.5
        columns = tf.where(mirrored, columns[::-1], columns)  # [batch, width]
    columns = shift[:, 1:] + columns
    padded = tf.pad(images, [[0, 0], [PADDING, PADDING], [PADDING, PADDING], [0, 0]])
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
