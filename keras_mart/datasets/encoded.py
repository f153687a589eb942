"""PNG and JPEG files: decoding, and image sizes from their headers."""

import io
import struct

import tensorflow as tf

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type; with a palette (3) only decoding shows the number
JPEG_FRAMES = set(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}  # markers of frame headers
MAX_JPEG_CHANNELS = 3  # after decoding, which turns CMYK into RGB


def decode(content, channels=0):
    """Returns the [height, width, channels] uint8 image; with `channels` 0, it has the channels of the file.

    Raises:
        tf.errors.InvalidArgumentError: the file is damaged.
    """
    with tf.device("CPU"):
        # Decodes PNG as well. The default dct_method differs from libjpeg by up to 5 grey levels.
        return tf.io.decode_jpeg(content, channels, dct_method="INTEGER_ACCURATE")


def decode_checked(decode, content, name):
    """Returns the decoded image as an array.

    Raises:
        ValueError: the image cannot be decoded.
    """
    try:
        return decode(content).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"Every image must be a complete PNG or JPEG file. Received: {name}") from error


def header_shape(file):
    """Returns the (height, width, channels) of the decoded image, or `None` if the header does not show them.

    Args:
        file: a binary, seekable file at its beginning. Only a small part of it is read.
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
    """Reads a JPEG's shape from its frame header, after skipping the segments before it by their lengths."""
    while True:
        marker, length = struct.unpack(">HH", file.read(4))
        if marker in JPEG_FRAMES:
            _, height, width, channels = struct.unpack(">BHHB", file.read(6))
            return height, width, min(channels, MAX_JPEG_CHANNELS)
        if marker < 0xFF00:
            return None
        # A marker may be preceded by additional bytes of 0xFF.
        file.seek(-3 if marker == 0xFFFF else length - 2, io.SEEK_CUR)
