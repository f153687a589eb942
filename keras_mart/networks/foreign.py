"""Weights from PyTorch for a Keras network of the same architecture, and back, without PyTorch."""

import re
from typing import NamedTuple

import keras
import numpy as np

from keras_mart import checks, files, folding
from keras_mart.networks import torch_files

# Where checkpoints keep the state dictionary among other things.
KEYS = ("state_dict", "model_state_dict", "model", "net")
# What the official code of TRADES and MART builds in a WideResNet, registers and never calls: a second first block.
UNUSED = "sub_block1"
# The official names of the zoo's layers: TRADES's and MART's code, of PreActResNet-18 robust_overfitting's.
LAYOUTS = {
    "resnet": {
        "block": "layer{}.{}.", "stem_conv": "conv1", "stem_bn": "bn1", "shortcut_conv": "shortcut.0",
        "shortcut_bn": "shortcut.1", "logits": "linear",
    },
    "preact_resnet18": {
        "block": "layer{}.{}.", "stem_conv": "conv1", "final_bn": "bn", "shortcut_conv": "shortcut.0",
        "logits": "linear",
    },
    "wide_resnet": {
        "block": "block{}.layer.{}.", "stem_conv": "conv1", "final_bn": "bn1", "shortcut_conv": "convShortcut",
        "logits": "fc",
    },
    "small_cnn": {
        "block1_conv1": "feature_extractor.conv1", "block1_conv2": "feature_extractor.conv2",
        "block2_conv1": "feature_extractor.conv3", "block2_conv2": "feature_extractor.conv4",
        "dense1": "classifier.fc1", "dense2": "classifier.fc2", "logits": "classifier.fc3",
    },
}  # fmt: skip


def load_torch(path, network, *, key=None, ignore=()):
    """Loads the weights of a PyTorch checkpoint into a Keras network of the same architecture, without PyTorch.

    Layers with weights are convolutions, dense layers and BatchNormalizations. They are paired by name where the file
    has the official names of one of the zoo's networks (`save_torch`), behind any prefix such as `module.`. Otherwise
    they are paired kind by kind in order: of the file, which is PyTorch's order of registration, and of the network's
    graph, a block's longest branch first. Kernels are transposed, and the rows of a dense layer behind a flattening
    are put in Keras's order of pixels and channels. Either all weights are loaded or none.

    What a file of weights does not say must be equal: strides, padding, activations, BatchNormalization's epsilon (of
    PyTorch 1e-5, of Keras 1e-3) and a normalisation of the images. So compare the accuracy with the published one. In
    training, PyTorch's running variance has the factor n / (n - 1), Keras's has not.

    Args:
        path: of a file of `torch.save`, or of a `.safetensors` file (which needs the package `safetensors`, and the
            official names, since it does not keep the order). Only tensors in plain containers are read, no code.
        network: a functional or Sequential `keras.Model`; it is changed.
        key: where in the file the state dictionary is. By default that of `state_dict`, `model_state_dict`, `model`
            and `net` that is there, or all of the file.
        ignore: names in the file, or beginnings of names, that are left out, such as those of a normalisation.

    Returns:
        `network`.

    Raises:
        ValueError: the file is damaged or holds more than tensors in plain containers, its layers are not the
            network's, or the network is of another kind.
        OSError: the file cannot be read.
    """
    tensors = _state_dictionary(torch_files.read(path), key, path)
    groups = _groups({name: value for name, value in tensors.items() if not name.startswith(tuple(ignore))}, path)
    layers = _layers(network)
    names = _official(network, layers)
    pairs = names and _by_name(layers, names, groups)
    if not pairs and str(path).endswith(".safetensors"):
        raise ValueError(
            "A .safetensors file does not keep the order of layers, so that only the official names of the zoo's "
            f"networks can be loaded. Received: {path} with {', '.join(list(groups)[:3])}, ..."
        )
    new = []
    for layer, name in pairs or _in_order(layers, groups, network, path):
        new += _new_values(layer, name, groups[name], path)
    for variable, value in new:
        variable.assign(value)
    return network


def save_torch(network, path):
    """Writes a network's weights as a PyTorch state dictionary, without PyTorch.

    A `resnet`, `wide_resnet` or `small_cnn` of the zoo gets the names of TRADES's and MART's official code, a
    `preact_resnet18` those of robust_overfitting's, which load them with `strict=True`:

        model.load_state_dict(torch.load("mart.pt"))

    Any other network gets the names of its layers. The WideResNet's file also has the official code's `sub_block1`,
    which is never called (RobustBench: `WideResNet(34, 10, sub_block1=True)`), with the weights of `block1`. A
    normalisation inside the network is not in the file.

    Args:
        network: a functional or Sequential `keras.Model` whose layers with weights are convolutions, dense layers and
            BatchNormalizations.
        path: of the file, such as "mart.pt".

    Raises:
        ValueError: the network is of another kind.
        OSError: the file cannot be written.
    """
    layers = _layers(network)
    names = _official(network, layers) or [each.layer.name for each in layers]
    tensors = {}
    for layer, name in zip(layers, names, strict=True):
        for part, variable in layer.variables().items():
            tensors[f"{name}.{part}"] = layer.to_torch(part, np.asarray(variable, "float32"))
        if layer.kind == "BatchNormalization":
            tensors[f"{name}.num_batches_tracked"] = np.array(0, "int64")
    if network.name.startswith("wide_resnet"):
        block = {name: value for name, value in tensors.items() if name.startswith("block1.")}
        tensors |= {UNUSED + name.removeprefix("block1"): value for name, value in block.items()}
    with files.whole(path) as unfinished:
        torch_files.write(unfinished, tensors)


class _Layer(NamedTuple):
    """A layer with weights, and the order of the features that it is given.

    Attributes:
        layer: a `keras.layers.Conv2D`, `Dense` or `BatchNormalization`.
        features: [features] for each of Keras's which of PyTorch's it is, behind a flattening; else `None`.
    """

    layer: keras.layers.Layer
    features: np.ndarray | None

    @property
    def kind(self):
        kinds = (keras.layers.Conv2D, keras.layers.Dense, keras.layers.BatchNormalization)
        return next((each.__name__ for each in kinds if isinstance(self.layer, each)), None)

    def variables(self):
        """PyTorch's name of each of the weights to the variable."""
        names = {"weight": "kernel", "bias": "bias"}
        if self.kind == "BatchNormalization":
            names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        found = {name: getattr(self.layer, ours, None) for name, ours in names.items()}
        return {name: variable for name, variable in found.items() if variable is not None}

    def to_keras(self, name, value):
        """One of PyTorch's tensors as Keras has it."""
        if self.kind == "Conv2D" and value.ndim == 4:
            return value.transpose(2, 3, 1, 0)
        value = value.T
        moved = self.features is not None and not (self.kind == "Dense" and name == "bias")
        return value[self.features] if moved and len(value) == len(self.features) else value

    def to_torch(self, name, value):
        """The other way."""
        if self.kind == "Conv2D" and value.ndim == 4:
            return value.transpose(3, 2, 0, 1)
        if self.features is not None and not (self.kind == "Dense" and name == "bias"):
            value = value[np.argsort(self.features)]
        return value.T


def _layers(network):
    """The layers with weights in the order of the graph, as `_Layer`s."""
    checks.unwrapped(network)
    found = []
    _walk(network, None, found)
    return list({id(each.layer): each for each in found}.values())


def _walk(network, features, found):
    """Adds the layers of a network to those found; returns the order of the features of its output."""
    graph = folding.graph_of(network)
    if graph is None:
        raise ValueError(
            "Weights are exchanged with functional and Sequential networks of one input and one output. "
            f"Received: {network!r}"
        )
    seen, stand_ins = folding.stand_ins_of(graph)
    order = {id(seen.inputs[0]): features}
    for stand_in, inputs, output in _depth_first(stand_ins, seen.outputs[0]):
        operation, given = stand_in.operation, [order.get(id(each)) for each in inputs]
        if isinstance(operation, keras.Model):
            order[id(output)] = _walk(operation, given[0], found)
            continue
        order[id(output)] = _features_behind(operation, inputs, given, output)
        if getattr(operation, "weights", ()):
            found.append(_checked(_Layer(operation, given[0])))
    return order[id(seen.outputs[0])]


def _depth_first(stand_ins, output):
    """(stand-in, inputs, output) of each first call, each behind what it needs, the longest branch first.

    So does PyTorch's code list the layers of a block: its main branch, then the shortcut.
    """
    calls, depth = {}, {}
    for stand_in in stand_ins:
        for args, kwargs, made in stand_in.calls:
            inputs = [each for each in keras.tree.flatten((args, kwargs)) if isinstance(each, keras.KerasTensor)]
            for each in keras.tree.flatten(made):
                calls[id(each)] = stand_in, inputs, each
                depth[id(each)] = 1 + max((depth.get(id(one), 0) for one in inputs), default=0)
    found, begun, waiting = [], set(), [(output, False)]
    while waiting:
        tensor, is_done = waiting.pop()
        if is_done:
            found.append(calls[id(tensor)])
        elif id(tensor) in calls and id(tensor) not in begun:
            begun.add(id(tensor))
            inputs = sorted(reversed(calls[id(tensor)][1]), key=lambda each: depth.get(id(each), 0))
            waiting += [(tensor, True), *((each, False) for each in inputs)]
    return found


def _features_behind(operation, inputs, given, output):
    """For each feature behind an operation which of PyTorch's it is, where images were flattened; else `None`."""
    if len(inputs) and len(inputs[0].shape) == 4 and len(output.shape) == 2:
        height, width, channels = inputs[0].shape[1:]
        if None not in (height, width) and output.shape[-1] == height * width * channels:
            return np.arange(height * width * channels).reshape(channels, height, width).transpose(1, 2, 0).ravel()
    known = [each for each in given if each is not None]
    if not known or isinstance(operation, keras.layers.Dense):
        return None
    if output.shape != inputs[0].shape or not all(np.array_equal(each, known[0]) for each in given):
        raise ValueError(
            "Between a flattening and the dense layer behind it the features must keep their places. "
            f"Received: {operation!r}"
        )
    return known[0]


def _checked(layer):
    """The layer, if all of its weights are known to PyTorch."""
    ours = {id(each) for each in layer.variables().values()} if layer.kind else set()
    if ours != {id(each) for each in layer.layer.weights}:
        raise ValueError(
            "Weights are exchanged of Conv2D, Dense and BatchNormalization layers in their plain form. "
            f"Received: {layer.layer.name!r}, a {type(layer.layer).__name__}"
        )
    return layer


def _official(network, layers):
    """The official names of a zoo's network's layers, `None` for other networks."""
    layout = next((each for name, each in LAYOUTS.items() if network.name.startswith(name)), None)
    names = [layout and _official_name(layout, each.layer.name) for each in layers]
    return names if layout and None not in names and len(set(names)) == len(names) else None


def _official_name(layout, name):
    block = re.fullmatch(r"stage(\d+)_block(\d+)_(\w+)", name)
    if block is None or "block" not in layout:
        return layout.get(name)
    return layout["block"].format(block[1], int(block[2]) - 1) + layout.get(block[3], block[3])


def _state_dictionary(value, key, path):
    """The tensors of a checkpoint by name."""
    keys = list(value) if isinstance(value, dict) else []
    chosen = [each for each in KEYS if each in keys and isinstance(value[each], dict)] if key is None else [key]
    if len(chosen) > 1 or not set(chosen) <= set(keys):
        told = f"several state dictionaries, {', '.join(chosen)}" if len(chosen) > 1 else f"no {key!r}"
        raise ValueError(f"`key` must say where the state dictionary is. Received: {path} with {told}: {keys[:10]}")
    found = value[chosen[0]] if chosen else value
    if not isinstance(found, dict) or not all(isinstance(each, np.ndarray) for each in found.values()):
        held = keys if keys else type(value).__name__
        raise ValueError(f"A checkpoint must hold a state dictionary, tensors by name. Received: {path} with {held}")
    return found


def _groups(tensors, path):
    """Name of a layer to its tensors by their last names, in the file's order."""
    groups = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part != "num_batches_tracked" and UNUSED not in layer.split("."):
            groups.setdefault(layer, {})[part] = tensor
    other = [name for name, group in groups.items() if _kind(group) is None]
    if other:
        raise ValueError(
            "A state dictionary must hold convolutions, dense layers and BatchNormalizations with running statistics; "
            f"`ignore` leaves others out. Received: {path} with {', '.join(other)}"
        )
    return groups


def _kind(group):
    """The Keras class of a layer of PyTorch's by its tensors."""
    if "running_mean" in group:
        return "BatchNormalization"
    return {4: "Conv2D", 2: "Dense"}.get(np.ndim(group.get("weight")))


def _by_name(layers, names, groups):
    """(layer, its name in the file) pairs where the file has these names behind one prefix; else `None`."""
    longest = max(names, key=len)
    for name in groups:
        prefix = name.removesuffix(longest)
        if name.endswith(longest) and {prefix + each for each in names} == set(groups):
            return [(layer, prefix + each) for layer, each in zip(layers, names, strict=True)]
    return None


def _in_order(layers, groups, network, path):
    """(layer, its name in the file) pairs, kind by kind in order."""
    pairs = []
    for kind in ("Conv2D", "Dense", "BatchNormalization"):
        ours = [each for each in layers if each.kind == kind]
        theirs = [name for name, group in groups.items() if _kind(group) == kind]
        if len(ours) != len(theirs):
            raise ValueError(
                f"The file must have as many {kind} layers as the network. Received: {len(theirs)} in {path} "
                f"({', '.join(theirs[:3])}, ...), {len(ours)} in {network.name!r}"
            )
        pairs += zip(ours, theirs, strict=True)
    return pairs


def _new_values(layer, name, group, path):
    """(variable, value) of each of a layer's weights."""
    variables = layer.variables()
    if variables.keys() != group.keys():
        raise ValueError(
            f"Layer {layer.layer.name!r} takes {', '.join(variables)}. Received: {', '.join(group)} as {name} in {path}"
        )
    found = []
    for part, variable in variables.items():
        value = layer.to_keras(part, group[part])
        if value.shape != tuple(variable.shape):
            raise ValueError(
                f"{name}.{part} must have the shape of {layer.layer.name!r}, in PyTorch's order "
                f"{layer.to_torch(part, np.empty(variable.shape)).shape}. Received: {group[part].shape} in {path}"
            )
        found.append((variable, value))
    return found
