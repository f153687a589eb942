"""The augmentations that `augment` names, and their application in order."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import keras
import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import cropping, recipes
from keras_mart.datasets.operations import LAYER
from keras_mart.datasets.steps import apply_layer, layer_step

CROPS = ("crop_flip", "crop")
# Factories of the steps (`steps.py`), and of the layers that mix images and labels, by name.
STEPS = {
    "idbh": recipes.idbh,
    "cutout": lambda: cropping.cutout,
    "erasing": recipes.erasing,
    "randaugment": recipes.randaugment,
    "augmix": recipes.augmix,
}
MIXERS = {
    "cutmix": lambda: keras.layers.CutMix((1.0, 1.0), seed=0, **LAYER),
    "mixup": lambda: keras.layers.MixUp(seed=0, **LAYER),
}
MIXING_LAYERS = (keras.layers.CutMix, keras.layers.MixUp)
AUGMENTATIONS = (*CROPS, *STEPS, *MIXERS)
COLOUR_AUGMENTATIONS = ("idbh", "randaugment")  # they need images of 1 or 3 channels
STEPS_STREAM = -1  # random stream of a batch's seed; the streams from 0 on belong to the batch's resized images

Augment: TypeAlias = str | keras.layers.Layer | Sequence[str | keras.layers.Layer]


class Augmentation(NamedTuple):
    """The first augmentation, "crop", "crop_flip" or `None`, and the names and Keras layers that follow."""

    crop: str | None
    others: tuple

    def __bool__(self):
        return bool(self.crop or self.others)

    @property
    def mixes(self):
        """Whether images are mixed, which makes labels soft."""
        return any(each in MIXERS or isinstance(each, MIXING_LAYERS) for each in self.others)

    def check(self, shape):
        """Builds the layers; raises ValueError if an augmentation does not suit [height, width, channels] images."""
        for each in self.others:
            if each in COLOUR_AUGMENTATIONS and shape[-1] not in (1, 3):
                raise ValueError(
                    f"{each!r} needs images with 1 or 3 channels. Received: images of shape {tuple(shape)}"
                )
            if isinstance(each, keras.layers.Layer):
                _check_layer(each)
                if not each.built:
                    each.build((None, *shape))

    def steps(self):
        """Returns a function of (images in [0, 1], labels, [2] seed) that applies all but the crop.

        It returns (images, labels). Labels must be soft if images are mixed.
        """
        steps = [_step_of(each) for each in self.others]

        def augment(images, labels, seed):
            if not steps:
                return images, labels
            seeds = tf.unstack(tf.random.split(tf.random.fold_in(seed, STEPS_STREAM), len(steps)), len(steps))
            for step, own in zip(steps, seeds, strict=True):
                changed, labels = step(images, labels, own)
                if changed.shape[1:] != images.shape[1:]:
                    raise ValueError(
                        "A layer that augments must keep the shape of the images. "
                        f"Received: a layer that changes {images.shape[1:]} to {changed.shape[1:]}"
                    )
                images = tf.ensure_shape(tf.clip_by_value(changed, 0, 1), images.shape)
            return images, labels

        return augment


NO_AUGMENTATION = Augmentation(None, ())


def parse_augment(augment):
    """Returns the `Augmentation` of an `augment` argument: `None`, a name, a Keras layer or a sequence of these.

    Raises:
        ValueError: an unknown name, or a crop that does not come first.
    """
    names = () if augment is None else tuple(augment) if isinstance(augment, (list, tuple)) else (augment,)
    for each in names:
        if not isinstance(each, keras.layers.Layer):
            checks.one_of(each, AUGMENTATIONS, "augment")
    crop = names[0] if names and names[0] in CROPS else None
    others = names[crop is not None :]
    if any(each in CROPS for each in others):
        raise ValueError(f"`augment` must contain at most one crop, at its beginning. Received: augment={augment!r}")
    return Augmentation(crop, others)


def _check_layer(layer):
    if isinstance(layer, keras.layers.AugMix):
        raise ValueError(
            "`augment` must not contain keras.layers.AugMix, which draws its operations once, when it is traced, and "
            f"without a seed: use 'augmix'. Received: {layer!r}"
        )
    value_range = getattr(layer, "value_range", None)
    if layer.compute_dtype != "float32" or (value_range is not None and tuple(value_range) != (0, 1)):
        raise ValueError(
            "A layer that augments must have dtype='float32' and, if it has a value_range, value_range=(0, 1). "
            f"Received: {layer!r} with dtype={layer.compute_dtype!r}, value_range={value_range}"
        )


def _step_of(each):
    """Returns the step of a name or a layer, a function of (images, labels, seed)."""
    layer = MIXERS[each]() if each in MIXERS else each
    if isinstance(layer, MIXING_LAYERS):
        return lambda images, labels, seed: _mix(layer, images, labels, seed)
    step = layer_step(layer) if isinstance(layer, keras.layers.Layer) else STEPS[layer]()
    return lambda images, labels, seed: (step(images, seed), labels)


def _mix(layer, images, labels, seed):
    mixed = apply_layer(layer, {"images": images, "labels": labels}, seed)
    return mixed["images"], mixed["labels"]
