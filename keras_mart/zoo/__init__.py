"""The papers' networks: functional Keras models from images in [0, 1] to logits, with PyTorch's conventions.

What the papers' recipes take for granted and Keras does otherwise is written out in `parts`: the initialisation, the
padding of strided convolutions, and BatchNormalization's constants. The running variance stays Keras's: of the batch
itself, where PyTorch's has the factor n / (n - 1), n = batch * height * width.

The logits are float32 whatever the dtype policy.
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
