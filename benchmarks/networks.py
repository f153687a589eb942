"""Networks by name, and what they cost to compute."""

import math
import re

import keras
import numpy as np
from keras import layers

from keras_mart import zoo

# Layers whose every output position costs one multiplication and addition for each weight of the kernel.
COUNTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
# Evaluation forwards of an attack besides its gradients': TRADES's of the natural images; MMA's of the natural images
# and the ten of its bisection.
EXTRA_FORWARDS = {"trades": 1, "mma": 11}


def build(name):
    """A network of the zoo with its default arguments; `wide_resnet_34_10` is the one of depth 34 and width 10.

    Besides, `digits`, a WideResNet for the images of that data set, and `strided_cnn`.
    """
    wide = re.fullmatch(r"wide_resnet_(\d+)_(\d+)", name)
    if wide:
        return zoo.wide_resnet(int(wide[1]), int(wide[2]))
    return ({"digits": digits, "strided_cnn": strided_cnn}.get(name) or getattr(zoo, name))()


def digits():
    return zoo.wide_resnet(10, 2, input_shape=(8, 8, 1))


def strided_cnn():
    """Two convolutions of stride 2 and two dense layers, for MNIST: the network of Wong and Kolter (1711.00851)."""
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(16, 4, 2, "same", activation="relu"),
        layers.Conv2D(32, 4, 2, "same", activation="relu"),
        layers.Flatten(),
        layers.Dense(100, activation="relu"),
        layers.Dense(10),
    ])  # fmt: skip


def in_pytorch(network):
    """The arrays of each layer that has weights, as PyTorch lays them out and in the order of `official.build`."""
    blocks, found, before = {}, [], None
    for layer in network.layers:
        if layer.weights:
            block = re.match(r"(stage\d+_block\d+)?", layer.name)[0] or layer.name
            # A block's shortcut comes last.
            place = blocks.setdefault(block, len(blocks)), "shortcut" in layer.name
            found.append((place, [_in_pytorch(np.asarray(weight), before) for weight in layer.weights]))
        before = layer
    return [arrays for _, arrays in sorted(found, key=lambda each: each[0])]


def _in_pytorch(array, before):
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2 and isinstance(before, layers.Flatten):  # of images, whose channels come first
        return array.reshape(*before.input.shape[1:], -1).transpose(3, 2, 0, 1).reshape(array.shape[::-1])
    return array.T


def forward_flops(network):
    """Operations of one forward of one image, two for each multiplication and addition of a convolution or dense layer.

    Layers that are called several times count once.
    """
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            total += forward_flops(layer)
        elif isinstance(layer, COUNTED):
            total += 2 * math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
    return total


def training_flops(method, model):
    """Operations of one training step for each image, and of the attack in it.

    With F those of a forward, a gradient with respect to the images costs 2 F (a forward, and as much again backwards)
    and a training forward with its gradient 3 F (with respect to the weights as well). For k gradients of the attack:

        standard         3 F
        AT               2 k F + 3 F + F       (the natural images are forwarded for their accuracy alone)
        MART, ALP, CLP   2 k F + 2 * 3 F
        TRADES           2 k F + 2 * 3 F + F   (what its attack moves away from)
        MMA              2 k F + 2 * 3 F + 11 F

    MART with ten steps on ResNet-18: 26 F, 29 GFLOP for a CIFAR image.

    Args:
        method: name of the method.
        model: the method of this package, round its network.
    """
    forward = forward_flops(model.network)
    if not model.has_adversary:
        return {"flops": 3 * forward, "attack_flops": 0}
    attack = 2 * model.attack.gradients + EXTRA_FORWARDS.get(method, 0)
    outer = 3 + 3 if model.trains_on_natural else 3 + 1
    return {"flops": (attack + outer) * forward, "attack_flops": attack * forward}
