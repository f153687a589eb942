"""Random crops and mirroring of whole batches; resizing and random resized crops of single images."""

import tensorflow as tf

PADDING = 4  # pixels on each side, as in the CIFAR-10 recipe of MART, TRADES and AT
# The largest number of rows and columns that `cropshift` removes, as a fraction of the shorter side (2301.09879).
CROPSHIFT = 10 / 32
# Bounds of a random resized crop: its fraction of the image's area, and width / height (1409.4842).
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def crop(images, seed, flip):
    """Shifts each image by up to `PADDING` pixels in each direction, filling with zeros, and mirrors a random half.

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


def cropshift(images, seed):
    """Crops each image at random, and pastes the crop at a random position of a zero image of the original size.

    The total number of removed rows and columns is uniform from 0 to 10 (of 32), and the number of columns is uniform
    from 0 to that total. The positions of the crop in the image and of the paste are uniform too.

    Args:
        images: [batch, height, width, channels] of any dtype.
        seed: [2] integers.

    Reference: Li and Spratling, arXiv 2301.09879.
    """
    batch, (height, width) = tf.shape(images)[0], images.shape[1:3]
    total_seed, split_seed, *seeds = tf.unstack(tf.random.split(seed, 6))

    def up_to(most, seed):
        return tf.cast((tf.cast(most, tf.float32) + 1) * tf.random.stateless_uniform([batch, 1], seed), tf.int32)

    total = up_to(tf.fill([batch, 1], int(CROPSHIFT * min(height, width))), total_seed)
    columns = up_to(total, split_seed)
    for axis, size, lost in ((1, height, total - columns), (2, width, columns)):
        begin, place = up_to(lost, seeds.pop()), up_to(lost, seeds.pop())
        source = tf.range(size) - place  # [batch, size], counted from the crop's first row or column
        kept = (source >= 0) & (source < size - lost)
        mask = kept[:, :, None, None] if axis == 1 else kept[:, None, :, None]
        moved = tf.gather(images, tf.clip_by_value(source + begin, 0, size - 1), axis=axis, batch_dims=1)
        images = tf.where(mask, moved, tf.zeros([], images.dtype))
    return images


def mirrored(images, seed):
    """Mirrors a random half of [batch, height, width, channels] images."""
    chosen = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < 0.5
    return tf.where(chosen, images[:, :, ::-1], images)


def cutout(images, seed):
    """Sets a square of half the shorter side to zero. Its centre is anywhere in the image, so a part may lie outside.

    For images of 32 pixels its side is 16, as for CIFAR-10 in the paper, of which 8 to 16 pixels are in the image.

    Args:
        images: [batch, height, width, channels] of any dtype.
        seed: [2] integers.

    Reference: DeVries and Taylor, arXiv 1708.04552.
    """
    half = min(images.shape[1:3]) // 4

    def inside(size, seed):
        centre = tf.random.stateless_uniform([tf.shape(images)[0], 1], seed, maxval=size, dtype=tf.int32)
        return (tf.range(size) >= centre - half) & (tf.range(size) < centre + half)

    rows, columns = map(inside, images.shape[1:3], tf.unstack(tf.random.split(seed, 2)))
    return tf.where(rows[:, :, None, None] & columns[:, None, :, None], tf.zeros([], images.dtype), images)


def resized(image, size):
    """Resizes the shorter side of an image to `size`, and crops the longer one at the centre.

    Args:
        image: [height, width, channels] of any dtype.
        size: height and width of the result, which is float32 in the range of the image.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    shorter = tf.minimum(height, width)
    image = tf.image.resize(image, [height * size // shorter, width * size // shorter], antialias=True)
    return tf.image.resize_with_crop_or_pad(image, size, size)


def random_resized_crop(image, size, seed, flip):
    """Resizes a random part of an image, of random size and aspect ratio, and with `flip` mirrors it at random.

    The arguments are those of `crop` and `resized`. An image too narrow for such a part is resized as a whole. The part
    is drawn by TensorFlow's `stateless_sample_distorted_bounding_box`: its height is uniform, where in torchvision its
    area is.
    """
    part_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image), tf.zeros([1, 0, 4]), part_seed, min_object_covered=0.0, aspect_ratio_range=ASPECT,
        area_range=AREA, use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    part = tf.ensure_shape(tf.slice(image, begin, extent), [None, None, image.shape[2]])
    image = tf.image.resize(part, [size, size], antialias=True)
    return tf.image.stateless_random_flip_left_right(image, flip_seed) if flip else image
