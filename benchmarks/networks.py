"""Networks by name, and their floating-point operations."""

import math
import re

import keras
import numpy as np
from keras import layers

from keras_mart import zoo

# Layers that need one multiplication and addition per output position for each weight of the kernel.
COUNTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
# Forwards of an attack besides those of its gradients: TRADES's of the natural images; MMA's of the natural images and
# the ten of its bisection.
EXTRA_FORWARDS = {"trades": 1, "mma": 11}


def build(name):
    """Builds a network of the zoo with its default arguments, `wide_resnet_<depth>_<width>`, `digits` or `strided_cnn`.

    `digits` is a WideResNet for the images of that dataset.
    """
    wide = re.fullmatch(r"wide_resnet_(\d+)_(\d+)", name)
    if wide:
        return zoo.wide_resnet(int(wide[1]), int(wide[2]))
    return ({"digits": digits, "strided_cnn": strided_cnn}.get(name) or getattr(zoo, name))()


def digits():
    return zoo.wide_resnet(10, 2, input_shape=(8, 8, 1))


def strided_cnn():
    """Builds Wong and Kolter's network for MNIST (1711.00851): two convolutions of stride 2 and two dense layers."""
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(16, 4, 2, "same", activation="relu"),
        layers.Conv2D(32, 4, 2, "same", activation="relu"),
        layers.Flatten(),
        layers.Dense(100, activation="relu"),
        layers.Dense(10),
    ])  # fmt: skip


def pytorch_weights(network):
    """Returns the arrays of each layer with weights, in PyTorch's layout and in the order of `official.build`."""
    blocks, found, before = {}, [], None
    for layer in network.layers:
        if layer.weights:
            block = re.match(r"(stage\d+_block\d+)?", layer.name)[0] or layer.name
            # In PyTorch a block's shortcut comes last.
            place = blocks.setdefault(block, len(blocks)), "shortcut" in layer.name
            found.append((place, [_pytorch_layout(np.asarray(weight), before) for weight in layer.weights]))
        before = layer
    return [arrays for _, arrays in sorted(found, key=lambda each: each[0])]


def _pytorch_layout(array, before):
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2 and isinstance(before, layers.Flatten):  # of images, whose channels come first
        return array.reshape(*before.input.shape[1:], -1).transpose(3, 2, 0, 1).reshape(array.shape[::-1])
    return array.T


def forward_flops(network):
    """Returns the operations of convolutions and dense layers in one forward of one image.

    A multiplication with its addition counts as two operations; a layer that is called several times counts once.
    """
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            total += forward_flops(layer)
        elif isinstance(layer, COUNTED):
            total += 2 * math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
    return total


def training_flops(method, model):
    """Returns the operations per image of a training step, and of the attack in it.

    If a forward costs F, a gradient with respect to the images costs 2 F (F for the forward, F for the backward pass),
    and a training forward with its gradient 3 F (2 F for the backward pass, which includes the weights). With k
    gradients in the attack:

        standard         3 F
        AT               2 k F + 3 F + F       (the forward of natural images is only for their accuracy)
        MART, ALP, CLP   2 k F + 2 * 3 F
        TRADES           2 k F + 2 * 3 F + F   (the natural logits of the attack's objective)
        MMA              2 k F + 2 * 3 F + 11 F

    MART with ten steps on ResNet-18: 26 F, 29 GFLOP for a CIFAR image.

    Args:
        method: name of the method.
        model: model of this method.
    """
    forward = forward_flops(model.network)
    if not model.has_adversary:
        return {"flops": 3 * forward, "attack_flops": 0}
    attack = 2 * model.attack.gradients + EXTRA_FORWARDS.get(method, 0)
    outer = 3 + 3 if model.trains_on_natural else 3 + 1
    return {"flops": (attack + outer) * forward, "attack_flops": attack * forward}
