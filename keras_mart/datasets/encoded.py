"""PNG and JPEG: what a header says of an image's size, and decoding."""

import io
import struct

import tensorflow as tf

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type; of a palette (3) only decoding tells
JPEG_FRAMES = set(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}  # the headers of images
MAX_JPEG_CHANNELS = 3  # of what decoding gives: CMYK becomes RGB


def decode(content, channels=0):
    """Returns the [height, width, channels] uint8 image, with the channels that the file has where 0 is given.

    Raises:
        tf.errors.InvalidArgumentError: the file is damaged.
    """
    with tf.device("CPU"):
        # Reads PNG as well, by content. The default dct_method differs from libjpeg by up to 5 grey levels.
        return tf.io.decode_jpeg(content, channels, dct_method="INTEGER_ACCURATE")


def decode_checked(decode, content, name):
    """Returns the decoded image as an array.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        return decode(content).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"Every image must be a whole PNG or JPEG file. Received: {name}") from error


def header_shape(file):
    """Returns the (height, width, channels) that decoding will give, or `None` where the header does not tell.

    Args:
        file: binary and seekable, at its beginning. Little of it is read.
    """
    try:
        start = file.read(len(PNG))
        if start == PNG:
            _, kind, width, height, _, colours = struct.unpack(">I4sIIBB", file.read(18))
            return (height, width, PNG_CHANNELS[colours]) if kind == b"IHDR" else None
        if start.startswith(JPEG):
            file.seek(len(JPEG))
            return _jpeg_shape(file)
    except (struct.error, KeyError):
        pass
    return None


def _jpeg_shape(file):
    """What the frame header of a JPEG says, in front of which stand segments of other kinds, each with its length."""
    while True:
        marker, length = struct.unpack(">HH", file.read(4))
        if marker in JPEG_FRAMES:
            _, height, width, channels = struct.unpack(">BHHB", file.read(6))
            return height, width, min(channels, MAX_JPEG_CHANNELS)
        if marker < 0xFF00:
            return None
        # In front of a marker there may be more bytes of 0xFF.
        file.seek(-3 if marker == 0xFFFF else length - 2, io.SEEK_CUR)
