"""The networks of the papers: functional Keras models from images in [0, 1] to logits, with PyTorch's conventions.

`parts` implements the defaults of PyTorch that the papers' recipes rely on and that differ in Keras: initialisation,
padding of strided convolutions, and BatchNormalization's constants. The running variance is that of Keras: the variance
of the batch, which PyTorch multiplies by n / (n - 1), n = batch * height * width.

The logits are float32 regardless of the dtype policy.
"""

from keras_mart.zoo.inputs import NORMALISATIONS
from keras_mart.zoo.parts import ACTIVATIONS, PADDINGS
from keras_mart.zoo.pre_activation import SHORTCUTS, preact_resnet18, wide_resnet
from keras_mart.zoo.resnet import imagenet_resnet50, resnet, resnet18
from keras_mart.zoo.small_cnn import small_cnn
from keras_mart.zoo.vit import vit_tiny

__all__ = [
    "ACTIVATIONS",
    "NORMALISATIONS",
    "PADDINGS",
    "SHORTCUTS",
    "imagenet_resnet50",
    "preact_resnet18",
    "resnet",
    "resnet18",
    "small_cnn",
    "vit_tiny",
    "wide_resnet",
]
