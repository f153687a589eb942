"""Exchange of weights with PyTorch networks of the same architecture, without PyTorch."""

import os
import re
from collections.abc import Sequence

import keras
import numpy as np

from keras_mart import checks, files
from keras_mart.networks import torch_files, walk

KINDS = (keras.layers.Conv2D, keras.layers.Dense, keras.layers.BatchNormalization)
# Keys under which checkpoints keep the state dictionary.
KEYS = ("state_dict", "model_state_dict", "model", "net")
# A second first block that the WideResNet of TRADES's and MART's official code registers but never calls.
UNUSED_BLOCK = "sub_block1"
# The official names of the zoo's layers, from TRADES's and MART's code; PreActResNet-18's from robust_overfitting.
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


def load_torch(
    path: str | os.PathLike[str], network: keras.Model, *, key: str | None = None, ignore: str | Sequence[str] = ()
) -> keras.Model:
    """Loads the weights of a PyTorch checkpoint into a Keras network of the same architecture, without PyTorch.

    Layers with weights must be convolutions, dense layers or BatchNormalizations. If the file has the official names of
    one of the zoo's networks (`save_torch`), after any prefix such as `module.`, layers are matched by name. Otherwise
    the layers of each type are matched in order: in the file, that is PyTorch's order of registration, and in the
    network that of the graph, with the longest branch of a block first. Kernels are transposed, and the rows of a dense
    layer after a flattening are reordered to Keras's order of pixels and channels. Either all weights are loaded or
    none.

    Everything that a file of weights does not contain must be equal: strides, padding, pooling, activations,
    BatchNormalization's epsilon (PyTorch's default is 1e-5, Keras's 1e-3) and a normalisation of the images. A
    difference shows in the accuracy: compare it with the published one. In training, PyTorch's running variance has the
    factor n / (n - 1), Keras's does not.

    Args:
        path: a file written by `torch.save`, or a `.safetensors` file (which needs the package `safetensors`, and the
            official names, because it does not keep the order). Only tensors in plain containers are read, and no code
            is run.
        network: a functional or Sequential `keras.Model`, whose weights are replaced.
        key: the key of the state dictionary in the file. By default `state_dict`, `model_state_dict`, `model` or `net`,
            or the whole file if it has none of these.
        ignore: names in the file, or prefixes of names, to be skipped, such as those of a normalisation.

    Returns:
        `network`.

    Raises:
        ValueError: the file is damaged or contains more than tensors in plain containers, its layers do not match
            those of the network, or the network has layers that are not supported.
        OSError: the file cannot be read.
    """
    tensors = _state_dictionary(torch_files.read(path), key, path)
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    groups = _groups({name: value for name, value in tensors.items() if not name.startswith(ignored)}, path)
    layers = _layers(network)
    names = _official_names(network, layers)
    pairs = names and _by_name(layers, names, groups)
    if not pairs and str(path).endswith(".safetensors"):
        raise ValueError(
            "A .safetensors file must have the official names of one of the zoo's networks, because it does not keep "
            f"the order of layers. Received: {path} with {', '.join(list(groups)[:3])}, ..."
        )
    new = []
    for layer, name in pairs or _in_order(layers, groups, network, path):
        new += _new_values(layer, name, groups[name], path)
    for variable, value in new:
        variable.assign(value)
    return network


def save_torch(network: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes a network's weights as a PyTorch state dictionary, without PyTorch.

    Tensors of the zoo's `resnet`, `wide_resnet` and `small_cnn` are named as in TRADES's and MART's official code,
    those of `preact_resnet18` as in that of robust_overfitting. That code loads them with `strict=True`:

        model.load_state_dict(torch.load("mart.pt"))

    Tensors of other networks are named after their layers. The file of a WideResNet also contains the official code's
    `sub_block1`, which is never called (RobustBench: `WideResNet(34, 10, sub_block1=True)`), with the weights of
    `block1`. A normalisation inside the network is not included.

    Args:
        network: a functional or Sequential `keras.Model` whose layers with weights are convolutions, dense layers and
            BatchNormalizations.
        path: of the file, for example "mart.pt".

    Raises:
        ValueError: the network has layers that are not supported.
        OSError: the file cannot be written.
    """
    layers = _layers(network)
    names = _official_names(network, layers) or [each.layer.name for each in layers]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"Layers with weights must have unique names. Received: several {', '.join(twice)}")
    tensors = {}
    for layer, name in zip(layers, names, strict=True):
        for part, variable in layer.variables().items():
            tensors[f"{name}.{part}"] = layer.to_torch(part, np.asarray(variable, "float32"))
        if layer.kind == "BatchNormalization":
            tensors[f"{name}.num_batches_tracked"] = np.array(0, "int64")
    if network.name.startswith("wide_resnet"):
        block = {name: value for name, value in tensors.items() if name.startswith("block1.")}
        tensors |= {UNUSED_BLOCK + name.removeprefix("block1"): value for name, value in block.items()}
    with files.atomic_file(path) as unfinished:
        torch_files.write(unfinished, tensors)


class _Layer:
    """Converts the weights of a layer between Keras and PyTorch.

    Args:
        found: a `walk.WeightedLayer` of a `keras.layers.Conv2D`, `Dense` or `BatchNormalization`.

    Raises:
        ValueError: another type of layer, or additional weights, or channels-first data.
    """

    def __init__(self, found):
        self.layer, self.positions = found
        self.kind = next((kind.__name__ for kind in KINDS if isinstance(self.layer, kind)), None)
        is_plain = getattr(self.layer, "data_format", "channels_last") == "channels_last"
        ours = {id(each) for each in self.variables().values()}
        if self.kind is None or not is_plain or ours != {id(each) for each in self.layer.weights}:
            raise ValueError(
                "Layers with weights must be channels-last Conv2D, Dense or BatchNormalization layers without other "
                f"weights. Received: {self.layer.name!r}, a {type(self.layer).__name__}"
            )
        if self.positions is not None and (self.kind == "Conv2D" or self.positions.ndim != 1):
            raise ValueError(
                "Images must keep Keras's order, [height, width, channels], until they are flattened. Received: an "
                f"operation before {self.layer.name!r} that moves their values"
            )

    def variables(self):
        """Returns {PyTorch's name: variable} of the weights."""
        names = {"weight": "kernel", "bias": "bias"}
        if self.kind == "BatchNormalization":
            names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        found = {name: getattr(self.layer, attribute, None) for name, attribute in names.items()}
        return {name: variable for name, variable in found.items() if variable is not None}

    def to_keras(self, name, value):
        """Converts a PyTorch tensor to the layout of Keras."""
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        return value[self.positions] if self._is_permuted(name) and len(value) == len(self.positions) else value

    def to_torch(self, name, value):
        """Converts a Keras weight to the layout of PyTorch."""
        value = value[np.argsort(self.positions)] if self._is_permuted(name) else value
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T

    def _is_permuted(self, name):
        """Returns whether the rows of a weight correspond to features that an operation has moved."""
        return self.positions is not None and (self.kind, name) != ("Dense", "bias")


def _layers(network):
    """Returns a `_Layer` for each layer with weights, in order."""
    checks.unwrapped(network)
    return [_Layer(found) for found in walk.layers_of(network)]


def _official_names(network, layers):
    """Returns the official names of the layers of a zoo network, `None` for other networks."""
    layout = next((each for name, each in LAYOUTS.items() if network.name.startswith(name)), None)
    names = [layout and _official_name(layout, each.layer.name) for each in layers]
    return names if layout and None not in names and len(set(names)) == len(names) else None


def _official_name(layout, name):
    block = re.fullmatch(r"stage(\d+)_block(\d+)_(\w+)", name)
    if block is None or "block" not in layout:
        return layout.get(name)
    return layout["block"].format(block[1], int(block[2]) - 1) + layout.get(block[3], block[3])


def _state_dictionary(value, key, path):
    """Returns the tensors of a checkpoint by name."""
    keys = list(value) if isinstance(value, dict) else []
    chosen = [each for each in KEYS if each in keys and isinstance(value[each], dict)] if key is None else [key]
    if len(chosen) > 1 or not set(chosen) <= set(keys):
        found = f"several state dictionaries, {', '.join(chosen)}" if len(chosen) > 1 else f"no {key!r}"
        raise ValueError(f"`key` must be the key of the state dictionary. Received: {path} with {found}: {keys[:10]}")
    found = value[chosen[0]] if chosen else value
    items = found.items() if isinstance(found, dict) else [(None, found)]
    if not all(isinstance(name, str) and isinstance(each, np.ndarray) for name, each in items):
        content = keys[:10] if keys else type(value).__name__
        raise ValueError(
            "A checkpoint must contain a state dictionary of tensors by name; `key` selects it. "
            f"Received: {path} with {content}"
        )
    return found


def _groups(tensors, path):
    """Returns {layer name: {last part of the name: tensor}}, in the order of the file."""
    groups = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part != "num_batches_tracked" and UNUSED_BLOCK not in layer.split("."):
            groups.setdefault(layer, {})[part] = tensor
    other = [
        f"{layer}.{part}".removeprefix(".") for layer, group in groups.items() if not _kind(group) for part in group
    ]
    if other:
        raise ValueError(
            "A state dictionary must contain only convolutions, dense layers and BatchNormalizations with running "
            f"statistics; `ignore` skips other tensors. Received: {path} with {', '.join(other)}"
        )
    return groups


def _kind(group):
    """Returns the name of the Keras class for a PyTorch layer with these tensors, `None` for other layers."""
    if "running_mean" in group:
        return "BatchNormalization"
    return {4: "Conv2D", 2: "Dense"}.get(np.ndim(group.get("weight")))


def _by_name(layers, names, groups):
    """Returns (layer, name in the file) pairs if the file has exactly these names after one prefix, else `None`."""
    longest = max(names, key=len)
    for name in groups:
        prefix = name.removesuffix(longest)
        if name.endswith(longest) and {prefix + each for each in names} == set(groups):
            return [(layer, prefix + each) for layer, each in zip(layers, names, strict=True)]
    return None


def _in_order(layers, groups, network, path):
    """Returns (layer, name in the file) pairs, matching the layers of each type in order."""
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
    """Returns (variable, value) of each weight of a layer."""
    variables = layer.variables()
    if variables.keys() != group.keys():
        raise ValueError(
            f"Layer {layer.layer.name!r} must be given {', '.join(variables)}. "
            f"Received: {', '.join(group)} as {name} in {path}"
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
