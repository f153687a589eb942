"""Embeds images as PNG in the page."""

import base64

import numpy as np
import tensorflow as tf

from keras_mart.evaluation.report.markup import tag

# Smaller images are enlarged without smoothing.
PIXELATED = 96


def picture(values, alt):
    """Returns the image element of [height, width, channels] values in [0, 1].

    Unless there are three channels, the mean of the channels is shown in grey.
    """
    values = np.asarray(values, "float32")
    if values.shape[-1] != 3:
        values = values.mean(axis=-1, keepdims=True)
    levels = np.rint(255 * np.clip(values, 0, 1)).astype("uint8")
    code = base64.b64encode(tf.io.encode_png(levels).numpy()).decode()
    height, width = levels.shape[:2]
    class_ = "pixels" if max(height, width) < PIXELATED else None
    return tag("img", src=f"data:image/png;base64,{code}", alt=alt, width=width, height=height, class_=class_)
