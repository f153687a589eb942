"""A small vision transformer."""

import keras
from keras import layers

from keras_mart import checks
from keras_mart.zoo.inputs import image_input
from keras_mart.zoo.parts import logits, uniform

LAYER_NORM_EPSILON = 1e-6  # DeiT's, as in its first code in JAX
STDDEV = 0.02  # of initial weights
MLP_RATIO = 4  # how many times wider an MLP's hidden layer is


def vit_tiny(
    num_classes=10, input_shape=(32, 32, 3), *, patch_size=4, width=192, depth=12, heads=3, normalisation=None
):
    """A vision transformer of DeiT-Ti's size for 32x32 images, with a class token and learned positions.

    Patches of 4x4 pixels become tokens of `width` units. A block is x + attention(norm(x)), then x + mlp(norm(x)) with
    4 times `width` hidden units and GELU. The logits are a linear function of the normalised class token. Weights start
    as normal(0, 0.02), biases as 0, the patches' kernel with PyTorch's default.

    Differences: what DeiT adds to a token, its position's embedding and the bias of the patches or the class token, is
    one variable here. Stochastic depth and the distillation token are left out.

    Args:
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images; height and width are multiples of `patch_size`.
        patch_size: int, at least 1, in pixels.
        width: int, a multiple of `heads`.
        depth: int, at least 1, the number of blocks.
        heads: int, at least 1, of each attention.
        normalisation: None, a pair (mean, std) with one value for each channel, applied to the images first, or a
            name of `NORMALISATIONS`.

    Returns:
        A `keras.Model`: [batch, height, width, channels] images to [batch, num_classes] logits.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Dosovitskiy et al. (2010.11929); DeiT (2012.12877), whose code uses timm's vision_transformer.py.
    """
    for name, value in (("patch_size", patch_size), ("width", width), ("depth", depth), ("heads", heads)):
        checks.positive_integer(value, name)
    if width % heads:
        raise ValueError(f"`width` must be a multiple of `heads`. Received: width={width}, heads={heads}")
    images, x = image_input(num_classes, input_shape, normalisation)
    if any(length % patch_size for length in input_shape[:2]):
        raise ValueError(
            "Height and width of the images must be multiples of `patch_size`. "
            f"Received: input_shape={input_shape}, patch_size={patch_size}"
        )
    x = _tokens(x, patch_size, width)
    for block in range(1, depth + 1):
        x = _block(x, heads, name=f"block{block}")
    x = layers.Cropping1D((0, x.shape[1] - 1), name="class_token")(x)
    x = _norm(layers.Flatten(name="flatten")(x), name="final_norm")
    x = logits(x, num_classes, kernel_initializer=_normal(), bias_initializer="zeros")
    return keras.Model(images, x, name="vit_tiny")


def _tokens(x, size, width):
    """The class token and a token for each patch of size x size pixels, row by row, with their positions."""
    _, rows, columns, channels = x.shape
    grid = (rows // size, columns // size)
    x = layers.Reshape((grid[0], size, grid[1], size * channels), name="patch_rows")(x)
    x = layers.Permute((1, 3, 2, 4), name="patch_grid")(x)
    x = layers.Reshape((grid[0] * grid[1], size * size * channels), name="patches")(x)
    # A patch of zeros for the class token: the bias, which each token has its own of, is all that it becomes.
    x = layers.ZeroPadding1D((1, 0), name="class_token_pad")(x)
    kernel, bias = uniform(x.shape[-1]), _normal()
    return layers.EinsumDense(
        "btp,pd->btd", (x.shape[1], width), bias_axes="td", kernel_initializer=kernel, bias_initializer=bias,
        name="embedding",
    )(x)  # fmt: skip


def _block(x, heads, *, name):
    width = x.shape[-1]
    y = _norm(x, name=f"{name}_norm1")
    attention = layers.MultiHeadAttention(heads, width // heads, kernel_initializer=_normal(), name=f"{name}_attention")
    x = layers.Add(name=f"{name}_add1")([x, attention(y, y)])
    y = _norm(x, name=f"{name}_norm2")
    hidden = layers.Dense(MLP_RATIO * width, "gelu", kernel_initializer=_normal(), name=f"{name}_mlp1")
    y = layers.Dense(width, kernel_initializer=_normal(), name=f"{name}_mlp2")(hidden(y))
    return layers.Add(name=f"{name}_add2")([x, y])


def _norm(x, *, name):
    return layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=name)(x)


def _normal():
    return keras.initializers.RandomNormal(stddev=STDDEV)
