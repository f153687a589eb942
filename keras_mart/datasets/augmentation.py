"""Crops and mirror images of a whole batch at once, and resizing of single images, at random or not."""

import tensorflow as tf

AUGMENTATIONS = ("crop_flip", "crop")
PADDING = 4  # pixels on each side: the CIFAR-10 recipe of MART, TRADES and AT
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random resized crop: share of the image, width / height (1409.4842)


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


def resized(image, size):
    """Resizes the shorter side of an image to `size`, and cuts the middle out of the longer one.

    Args:
        image: [height, width, channels] of any dtype.
        size: height and width of what is returned, float32 in the range of the image.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    shorter = tf.minimum(height, width)
    image = tf.image.resize(image, [height * size // shorter, width * size // shorter], antialias=True)
    return tf.image.resize_with_crop_or_pad(image, size, size)


def random_resized_crop(image, size, seed, flip):
    """Resizes a random part of an image, of a random size and shape, and with `flip` mirrors it with probability 0.5.

    Of an image of which no such part is found, as it is too narrow, the whole is resized. The other arguments are those
    of `crop` and `resized`. The part is drawn by TensorFlow's `stateless_sample_distorted_bounding_box`: not its area
    is uniform, as in torchvision, but its height.
    """
    part_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image), tf.zeros([1, 0, 4]), part_seed, min_object_covered=0.0, aspect_ratio_range=ASPECT,
        area_range=AREA, use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    part = tf.ensure_shape(tf.slice(image, begin, extent), [None, None, image.shape[2]])
    image = tf.image.resize(part, [size, size], antialias=True)
    return tf.image.stateless_random_flip_left_right(image, flip_seed) if flip else image
