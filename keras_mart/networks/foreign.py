"""Weights from PyTorch for a Keras network of the same architecture, and back, without PyTorch."""

import re

import keras
import numpy as np

from keras_mart import checks, files
from keras_mart.networks import torch_files, walk

KINDS = (keras.layers.Conv2D, keras.layers.Dense, keras.layers.BatchNormalization)
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

    What a file of weights does not hold must be equal: strides, padding, pooling, activations, BatchNormalization's
    epsilon (of PyTorch 1e-5, of Keras 1e-3) and a normalisation of the images. A difference shows in the accuracy:
    compare it with the published one. In training, PyTorch's running variance has the factor n / (n - 1), Keras's does
    not.

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
    left_out = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    groups = _groups({name: value for name, value in tensors.items() if not name.startswith(left_out)}, path)
    layers = _layers(network)
    names = _official_names(network, layers)
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
    names = _official_names(network, layers) or [each.layer.name for each in layers]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"Layers with weights must have names of their own. Received: several {', '.join(twice)}")
    tensors = {}
    for layer, name in zip(layers, names, strict=True):
        for part, variable in layer.variables().items():
            tensors[f"{name}.{part}"] = layer.to_torch(part, np.asarray(variable, "float32"))
        if layer.kind == "BatchNormalization":
            tensors[f"{name}.num_batches_tracked"] = np.array(0, "int64")
    if network.name.startswith("wide_resnet"):
        block = {name: value for name, value in tensors.items() if name.startswith("block1.")}
        tensors |= {UNUSED + name.removeprefix("block1"): value for name, value in block.items()}
    with files.atomic_file(path) as unfinished:
        torch_files.write(unfinished, tensors)


class _Layer:
    """A layer with weights, as both libraries have it.

    Args:
        found: a `walk.WeightedLayer` of a `keras.layers.Conv2D`, `Dense` or `BatchNormalization`.

    Raises:
        ValueError: a layer of another kind, or not in its plain form.
    """

    def __init__(self, found):
        self.layer, self.positions = found
        self.kind = next((kind.__name__ for kind in KINDS if isinstance(self.layer, kind)), None)
        is_plain = getattr(self.layer, "data_format", "channels_last") == "channels_last"
        ours = {id(each) for each in self.variables().values()}
        if self.kind is None or not is_plain or ours != {id(each) for each in self.layer.weights}:
            raise ValueError(
                "Weights are exchanged of channels-last Conv2D, Dense and BatchNormalization layers in their plain "
                f"form. Received: {self.layer.name!r}, a {type(self.layer).__name__}"
            )
        if self.positions is not None and (self.kind == "Conv2D" or self.positions.ndim != 1):
            raise ValueError(
                "Images must keep Keras's order, [height, width, channels], up to a flattening. Received: an operation "
                f"in front of {self.layer.name!r} that moves their values"
            )

    def variables(self):
        """PyTorch's name of each of the weights to the variable."""
        names = {"weight": "kernel", "bias": "bias"}
        if self.kind == "BatchNormalization":
            names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        found = {name: getattr(self.layer, ours, None) for name, ours in names.items()}
        return {name: variable for name, variable in found.items() if variable is not None}

    def to_keras(self, name, value):
        """One of PyTorch's tensors as Keras has it."""
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        return value[self.positions] if self._is_permuted(name) and len(value) == len(self.positions) else value

    def to_torch(self, name, value):
        """One of Keras's weights as PyTorch has it."""
        value = value[np.argsort(self.positions)] if self._is_permuted(name) else value
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T

    def _is_permuted(self, name):
        """Whether a weight has a row for each feature of an input that was moved."""
        return self.positions is not None and (self.kind, name) != ("Dense", "bias")


def _layers(network):
    """The layers with weights in order."""
    checks.unwrapped(network)
    return [_Layer(found) for found in walk.layers_of(network)]


def _official_names(network, layers):
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
        found = f"several state dictionaries, {', '.join(chosen)}" if len(chosen) > 1 else f"no {key!r}"
        raise ValueError(f"`key` must say where the state dictionary is. Received: {path} with {found}: {keys[:10]}")
    found = value[chosen[0]] if chosen else value
    items = found.items() if isinstance(found, dict) else [(None, found)]
    if not all(isinstance(name, str) and isinstance(each, np.ndarray) for name, each in items):
        held = keys[:10] if keys else type(value).__name__
        raise ValueError(
            "A checkpoint must hold a state dictionary, tensors by name; `key` says where. "
            f"Received: {path} with {held}"
        )
    return found


def _groups(tensors, path):
    """Name of a layer to its tensors by their last names, in the file's order."""
    groups = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part != "num_batches_tracked" and UNUSED not in layer.split("."):
            groups.setdefault(layer, {})[part] = tensor
    other = [
        f"{layer}.{part}".removeprefix(".") for layer, group in groups.items() if not _kind(group) for part in group
    ]
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
    for kind in (each.__name__ for each in KINDS):
        ours = [each for each in layers if each.kind == kind]
        theirs = [name for name, group in groups.items() if _kind(group) == kind]
        if len(ours) != len(theirs):
            raise ValueError(
                f"The file must have as many {kind} layers as the network. Received: {len(theirs)} in {path} "
                f"{theirs[:3]}, {len(ours)} in {network.name!r}"
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
