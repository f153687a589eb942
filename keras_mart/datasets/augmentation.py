"""What `augment` may name, and its steps in their order."""

from typing import NamedTuple

import keras
import tensorflow as tf

from keras_mart import checks
from keras_mart.datasets import cropping, recipes
from keras_mart.datasets.operations import LAYER
from keras_mart.datasets.steps import apply_layer, layer_step

CROPS = ("crop_flip", "crop")
# What makes the step of a name, out of images and a seed; and what makes the layer that mixes images and labels.
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
COLOUR_AUGMENTATIONS = ("idbh", "randaugment")  # these know images of 1 and of 3 channels
STEPS_STREAM = -1  # of a batch's seed; images that are resized one by one have those from 0 on


class Augmentation(NamedTuple):
    """What comes first, "crop", "crop_flip" or `None`, and the names and Keras layers that follow."""

    crop: str | None
    others: tuple

    def __bool__(self):
        return bool(self.crop or self.others)

    @property
    def mixes(self):
        """Whether labels become soft."""
        return any(each in MIXERS or isinstance(each, MIXING_LAYERS) for each in self.others)

    def check(self, shape):
        """Builds layers, and raises ValueError for what cannot be done with [height, width, channels] images."""
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
        """Returns what does all but the crop: (images in [0, 1], labels, [2] seed) to (images, labels).

        Labels must be soft where images are mixed.
        """
        made = [_step_of(each) for each in self.others]

        def augment(images, labels, seed):
            if not made:
                return images, labels
            seeds = tf.unstack(tf.random.split(tf.random.fold_in(seed, STEPS_STREAM), len(made)), len(made))
            for step, own in zip(made, seeds, strict=True):
                changed, labels = step(images, labels, own)
                if changed.shape[1:] != images.shape[1:]:
                    raise ValueError(
                        "A layer that augments must keep the shape of images. "
                        f"Received: images of shape {changed.shape[1:]} in place of {images.shape[1:]}"
                    )
                images = tf.ensure_shape(tf.clip_by_value(changed, 0, 1), images.shape)
            return images, labels

        return augment


NO_AUGMENTATION = Augmentation(None, ())


def parse_augment(augment):
    """Returns the `Augmentation` that `augment` stands for: `None`, a name, a Keras layer or a sequence of these.

    Raises:
        ValueError: an unknown name, or a crop that is not the first.
    """
    names = () if augment is None else tuple(augment) if isinstance(augment, (list, tuple)) else (augment,)
    for each in names:
        if not isinstance(each, keras.layers.Layer):
            checks.one_of(each, AUGMENTATIONS, "augment")
    crop = names[0] if names and names[0] in CROPS else None
    others = names[crop is not None :]
    if any(each in CROPS for each in others):
        raise ValueError(f"`augment` must have one crop at most, and begin with it. Received: augment={augment!r}")
    return Augmentation(crop, others)


def _check_layer(layer):
    if isinstance(layer, keras.layers.AugMix):
        raise ValueError(
            "keras.layers.AugMix draws its operations when it is traced, once and without a seed: use 'augmix'. "
            f"Received: {layer!r}"
        )
    value_range = getattr(layer, "value_range", None)
    if layer.compute_dtype != "float32" or (value_range is not None and tuple(value_range) != (0, 1)):
        raise ValueError(
            "A layer that augments must have dtype='float32' and, if it knows one, value_range=(0, 1), as images have. "
            f"Received: {layer!r} with dtype={layer.compute_dtype!r}, value_range={value_range}"
        )


def _step_of(each):
    """The step of a name or a layer, of images and labels."""
    layer = MIXERS[each]() if each in MIXERS else each
    if isinstance(layer, MIXING_LAYERS):
        return lambda images, labels, seed: _mix(layer, images, labels, seed)
    step = layer_step(layer) if isinstance(layer, keras.layers.Layer) else STEPS[layer]()
    return lambda images, labels, seed: (step(images, seed), labels)


def _mix(layer, images, labels, seed):
    mixed = apply_layer(layer, {"images": images, "labels": labels}, seed)
    return mixed["images"], mixed["labels"]
