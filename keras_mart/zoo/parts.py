"""Convolutions, BatchNormalization and dense layers with PyTorch's conventions and the variations of the recipes."""

import dataclasses
from collections.abc import Callable

import keras
from keras import layers

from keras_mart import checks
from keras_mart.layers import BatchNormalization

BATCH_NORM_MOMENTUM = 0.9  # 1 minus PyTorch's default of 0.1, the weight of the new batch
BATCH_NORM_EPSILON = 1e-5  # PyTorch's default, also used by the recipes in JAX
PADDINGS = ("torch", "same")
# The elementwise activations of `keras.activations` for hidden units that need no arguments.
ACTIVATIONS = (
    "relu", "silu", "swish", "gelu", "elu", "celu", "selu", "leaky_relu", "relu6", "hard_silu", "mish", "softplus",
    "squareplus", "tanh",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parts:
    """Adds the layers of a convolutional network.

    Args:
        activation: one of `ACTIVATIONS`.
        bn_momentum: float in [0, 1), the weight of the old running statistics.
        padding: of 3x3 convolutions of stride 2. "torch": one pixel on each side. "same": TensorFlow's, for images of
            even size one pixel below and to the right.
        initializer: function that returns the initialiser of a convolution's kernel for its fan-in.
    """

    activation: str = "relu"
    bn_momentum: float = BATCH_NORM_MOMENTUM
    padding: str = "torch"
    initializer: Callable[[int], keras.initializers.Initializer] = lambda fan_in: uniform(fan_in)

    def __post_init__(self):
        checks.one_of(self.activation, ACTIVATIONS, "activation")
        checks.one_of(self.padding, PADDINGS, "padding")
        if not 0 <= self.bn_momentum < 1:
            raise ValueError(f"`bn_momentum` must be at least 0 and below 1. Received: bn_momentum={self.bn_momentum}")

    def convolution(self, x, filters, kernel_size=3, strides=1, *, name):
        """Adds a convolution without bias, padded by (kernel_size - 1) / 2 on each side; at stride 2 by `padding`."""
        padding = "same"
        if strides != 1 and self.padding == "torch":
            padding = "valid"
            if kernel_size > 1:
                x = layers.ZeroPadding2D((kernel_size - 1) // 2, name=f"{name}_pad")(x)
        initializer = self.initializer(kernel_size**2 * x.shape[-1])
        return layers.Conv2D(
            filters, kernel_size, strides, padding, use_bias=False, kernel_initializer=initializer, name=name
        )(x)

    def normalised(self, x, *, name):
        """Adds BatchNormalization."""
        return BatchNormalization(momentum=self.bn_momentum, epsilon=BATCH_NORM_EPSILON, name=name)(x)

    def activated(self, x, *, name):
        """Adds BatchNormalization, which gets the name, and the activation."""
        x = self.normalised(x, name=name)
        return layers.Activation(self.activation, name=name.replace("bn", self.activation))(x)


def stages(filters, blocks):
    """Yields (name, filters, strides) of each block. The first block of each stage except the first has stride 2.

    Args:
        filters: the number of filters of each stage.
        blocks: the number of blocks of each stage.
    """
    for stage, (width, count) in enumerate(zip(filters, blocks, strict=True), start=1):
        for block in range(1, count + 1):
            yield f"stage{stage}_block{block}", width, 2 if stage > 1 and block == 1 else 1


def dense(x, units, *, kernel_initializer=None, bias_initializer=None, **kwargs):
    """Adds a dense layer, by default with PyTorch's initialisation."""
    fan_in = x.shape[-1]
    kernel_initializer = kernel_initializer or uniform(fan_in)
    bias_initializer = bias_initializer or uniform(fan_in)
    return layers.Dense(units, kernel_initializer=kernel_initializer, bias_initializer=bias_initializer, **kwargs)(x)


def logits(x, num_classes, **kwargs):
    """Adds the last layer."""
    # In half precision, rounding would hide the differences that the losses compare.
    return dense(x, num_classes, dtype="float32", name="logits", **kwargs)


def uniform(fan_in):
    """Returns PyTorch's default initialiser for the weights and biases of convolutions and dense layers.

    Every weight needs a new initialiser, because one that is used twice draws the same values twice.
    """
    limit = fan_in**-0.5
    return keras.initializers.RandomUniform(-limit, limit)


def normal(mode):
    """Returns a new initialiser normal(0, sqrt(2 / fan)), not truncated, with mode "fan_in" or "fan_out"."""
    return keras.initializers.VarianceScaling(2.0, mode, "untruncated_normal")
