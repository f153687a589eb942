"""A small vision transformer."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_mart import checks
from keras_mart.zoo.inputs import Normalisation, image_input
from keras_mart.zoo.parts import logits, uniform

LAYER_NORM_EPSILON = 1e-6  # DeiT's, from the original code in JAX
STDDEV = 0.02  # of initial weights
MLP_RATIO = 4  # hidden units of an MLP, relative to `width`


def vit_tiny(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    *,
    patch_size: int = 4,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    normalisation: Normalisation | None = None,
) -> keras.Model:
    """A vision transformer of DeiT-Ti's size for 32x32 images, with a class token and learned positions.

    Each patch becomes a token of `width` units. A block is x + attention(norm(x)), then x + mlp(norm(x)) with 4 times
    `width` hidden units and GELU. The logits are a linear function of the normalised class token. Weights are
    initialised as normal(0, 0.02), biases as 0, the patch embedding's kernel with PyTorch's default.

    Differences: the terms that DeiT adds to a token, its position embedding and the bias of the patch embedding or the
    class token, are one variable here. Stochastic depth and the distillation token are omitted.

    Args:
        num_classes: int, at least 2.
        input_shape: (height, width, channels) of the images; height and width are multiples of `patch_size`.
        patch_size: int, at least 1, in pixels.
        width: int, a multiple of `heads`.
        depth: int, at least 1, the number of blocks.
        heads: int, at least 1, the number of attention heads.
        normalisation: of the images, inside the network: None, a pair (mean, std) with one value for each channel, or a
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
            "The height and width of images must be multiples of `patch_size`. "
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
    """Returns the class token and a token for each patch of size x size pixels, row by row, with positions added."""
    _, rows, columns, channels = x.shape
    grid = (rows // size, columns // size)
    x = layers.Reshape((grid[0], size, grid[1], size * channels), name="patch_rows")(x)
    x = layers.Permute((1, 3, 2, 4), name="patch_grid")(x)
    x = layers.Reshape((grid[0] * grid[1], size * size * channels), name="patches")(x)
    # The embedding of a patch of zeros is the class token: its own bias and nothing else.
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
