"""keras_mart.networks.load_torch and save_torch, on PyTorch files that Python's pickle writes here."""

import collections
import os
import pickle
import struct
import sys
import types
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_mart as km
from keras_mart.networks import load_torch, save_torch, torch_files

RANDOM = np.random.default_rng(0)
STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage"}


class Storage:
    """Stores the numbers that tensors are views of."""

    def __init__(self, values):
        self.values = np.ascontiguousarray(values).ravel()


class Tensor:
    """Is pickled like a PyTorch tensor, as a view of a storage."""

    def __init__(self, storage, size, strides, offset=0):
        self.view = storage, offset, size, strides

    @classmethod
    def of(cls, array):
        array = np.asarray(array)
        return cls(Storage(array), array.shape, tuple(each // array.itemsize for each in array.strides))

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.view, False, collections.OrderedDict())


class Pickler(pickle.Pickler):
    """Excludes storages from the pickle, and collects them by key."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = {}

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.storages[str(id(value))] = value.values
        kind = getattr(sys.modules["torch"], STORAGES[value.values.dtype.name])
        return ("storage", kind, str(id(value)), "cuda:0", value.values.size)


@pytest.fixture
def torch(monkeypatch):
    """Provides the PyTorch names that pickle looks up."""
    module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(module, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(*arguments): raise NotImplementedError", vars(utils))
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def archive(path, value):
    """Writes a file as `torch.save` does since PyTorch 1.6."""
    with zipfile.ZipFile(path, "w") as file:
        with file.open("somebody/data.pkl", "w") as pickled:
            pickler = Pickler(pickled)
            pickler.dump(value)
        file.writestr("somebody/version", "3\n")
        for key, storage in pickler.storages.items():
            file.writestr(f"somebody/data/{key}", storage.tobytes())
    return path


def stream(path, value):
    """Writes a file as `torch.save` did before PyTorch 1.6."""
    with path.open("wb") as file:
        for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}):
            pickle.dump(each, file, protocol=2)
        pickler = Pickler(file)
        pickler.dump(value)
        pickle.dump(list(pickler.storages), file, protocol=2)
        for storage in pickler.storages.values():
            file.write(struct.pack("<q", storage.size) + storage.tobytes())
    return path


WRITERS = {"archive": archive, "stream": stream}


def dictionary(tensors):
    """Returns an ordered dictionary with PyTorch's version metadata, as `state_dict` does."""
    made = collections.OrderedDict((name, Tensor.of(value)) for name, value in tensors.items())
    made._metadata = collections.OrderedDict({"": {"version": 1}})
    return made


def shaken(network):
    """Sets random positive weights, which differ between layers; returns the network."""
    network.set_weights([RANDOM.uniform(0.1, 1.0, each.shape) for each in network.get_weights()])
    return network


def assert_equal(network, other):
    for ours, theirs in zip(network.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def tensors_of(network, path):
    """Returns the tensors that `save_torch` writes, by name."""
    save_torch(network, path / "network.pt")
    return torch_files.read(path / "network.pt")


def small():
    """Returns a network with a strided convolution, two BatchNormalizations, flattening, dropout and a dense layer."""
    images = keras.Input((6, 8, 2))
    x = layers.Conv2D(3, 3, 2, activation="relu")(layers.ZeroPadding2D(1)(images))
    x = layers.BatchNormalization(epsilon=1e-5)(x)
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    x = layers.BatchNormalization(epsilon=1e-5)(x)
    return keras.Model(images, layers.Dense(5)(x), name="somebodys")


def small_tensors():
    """Returns the state dictionary of the same network in PyTorch."""
    sizes = {
        "0.weight": (3, 2, 3, 3), "0.bias": (3,), "2.weight": (3,), "2.bias": (3,), "2.running_mean": (3,),
        "2.running_var": (3,), "5.weight": (36,), "5.bias": (36,), "5.running_mean": (36,), "5.running_var": (36,),
        "6.weight": (5, 36), "6.bias": (5,),
    }  # fmt: skip
    made = {name: RANDOM.uniform(0.1, 1.0, size).astype("float32") for name, size in sizes.items()}
    return made | {"2.num_batches_tracked": np.int64(7), "5.num_batches_tracked": np.int64(7)}


def as_pytorch(tensors, x):
    """Returns the [batch, 5] logits of that network for [batch, 2, 6, 8] images, by PyTorch's documented formulas."""

    def normalised(x, name):
        weight, bias, mean, variance = (
            tensors[f"{name}.{part}"].reshape((-1,) + (1,) * (x.ndim - 2))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    kernel = tensors["0.weight"]
    x = sum(
        np.einsum("bchw,fc->bfhw", padded[:, :, row : row + 6 : 2, column : column + 8 : 2], kernel[:, :, row, column])
        for row in range(3)
        for column in range(3)
    )
    x = normalised(np.maximum(x + tensors["0.bias"].reshape(-1, 1, 1), 0), "2")
    return normalised(x.reshape(len(x), -1), "5") @ tensors["6.weight"].T + tensors["6.bias"]


@pytest.mark.parametrize("form", WRITERS)
def test_a_network_answers_as_in_pytorch(form, torch, tmp_path):
    tensors = small_tensors()
    checkpoint = {"state_dict": dictionary({f"module.{name}": value for name, value in tensors.items()}), "epoch": 3}
    network = load_torch(WRITERS[form](tmp_path / "checkpoint.pth", checkpoint), small())
    images = RANDOM.uniform(size=(4, 2, 6, 8)).astype("float32")
    logits = network.predict(images.transpose(0, 2, 3, 1), verbose=0)
    np.testing.assert_allclose(logits, as_pytorch(tensors, images), rtol=1e-5)
    written = tensors_of(network, tmp_path)
    ours = [each.name for each in network.layers if each.weights]
    ours = dict(zip(("0", "2", "5", "6"), ours, strict=True))
    for name, value in tensors.items():
        layer, _, part = name.partition(".")
        expected = 0 if part == "num_batches_tracked" else value
        np.testing.assert_array_equal(written[f"{ours[layer]}.{part}"], expected)


# Networks of the zoo, with the number of tensors of the official code and some of their names.
OFFICIAL = {
    "resnet18": (
        lambda: km.zoo.resnet18(input_shape=(8, 8, 3)),
        122, ["conv1.weight", "layer2.0.shortcut.1.running_var", "layer4.1.bn2.num_batches_tracked", "linear.bias"],
    ),
    "preact_resnet18": (
        lambda: km.zoo.preact_resnet18(input_shape=(8, 8, 3)),
        107, ["conv1.weight", "layer1.1.bn2.weight", "layer2.0.shortcut.0.weight", "bn.bias", "linear.weight"],
    ),
    "wide_resnet": (
        lambda: km.zoo.wide_resnet(10, 1),
        58, ["block2.layer.0.convShortcut.weight", "sub_block1.layer.0.bn1.bias", "bn1.weight", "fc.weight"],
    ),
    "small_cnn": (km.zoo.small_cnn, 14, ["feature_extractor.conv4.bias", "classifier.fc3.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_networks_of_the_zoo_go_to_pytorch_and_back(name, torch, tmp_path):
    make, count, names = OFFICIAL[name]
    network = shaken(make())
    tensors = tensors_of(network, tmp_path)
    assert set(names) <= tensors.keys() and len(tensors) == count
    assert_equal(load_torch(tmp_path / "network.pt", make()), network)
    # By the official names, in any order and after any prefix.
    backwards = {f"module.model.{name}": tensors[name] for name in reversed(tensors)}
    assert_equal(load_torch(archive(tmp_path / "backwards.pt", dictionary(backwards)), make()), network)
    # By the order, with any names.
    layer_names = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors if not name.startswith("sub_block1")))
    renamed = {
        f"{layer_names.index(layer)}.{part}": tensors[f"{layer}.{part}"]
        for layer, _, part in (name.rpartition(".") for name in tensors)
        if layer in layer_names
    }
    assert_equal(load_torch(archive(tmp_path / "renamed.pt", dictionary(renamed)), make()), network)


def test_equal_weights_make_equal_files(tmp_path):
    network = small()
    for name in ("one.pt", "other.pt"):
        save_torch(network, tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()


def test_layers_inside_models_and_of_two_branches_are_found_in_order(torch, tmp_path):
    images = keras.Input((4, 4, 1))
    inner = keras.Sequential([layers.Input((4, 4, 1)), layers.Conv2D(2, 3, padding="same"), layers.Flatten()])
    shortcut = layers.Dense(3, name="shortcut")(layers.Flatten()(images))
    main = layers.Dense(3, name="second")(layers.Dense(6, name="first")(inner(images)))
    network = keras.Model(images, layers.Add()([shortcut, main]))
    names = [name for name in tensors_of(network, tmp_path) if "weight" in name]
    assert [name.partition(".")[0] for name in names] == [inner.layers[0].name, "first", "second", "shortcut"]
    other = keras.models.clone_model(network)
    load_torch(tmp_path / "network.pt", other)
    images = RANDOM.uniform(size=(2, 4, 4, 1))
    np.testing.assert_array_equal(other(images), network(images))


def test_views_half_precision_and_shared_storages_are_read(torch, tmp_path):
    storage = Storage(np.arange(12, dtype="float64"))
    value = {
        "transposed": Tensor(storage, (4, 3), (1, 4)), "middle": Tensor(storage, (2,), (1,), offset=5),
        "repeated": Tensor(storage, (2, 2), (0, 1)), "none": Tensor(storage, (0, 3), (3, 1)),
        "others": [1, ("a", None)],
    }  # fmt: skip
    for form, write in WRITERS.items():
        found = torch_files.read(write(tmp_path / form, value))
        np.testing.assert_array_equal(found["transposed"], np.arange(12.0).reshape(3, 4).T)
        np.testing.assert_array_equal(found["middle"], [5, 6])
        np.testing.assert_array_equal(found["repeated"], [[0, 1], [0, 1]])
        assert found["none"].shape == (0, 3) and found["others"] == [1, ("a", None)]


def test_safetensors_are_loaded_by_the_official_names(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    network = shaken(km.zoo.small_cnn())
    path = tmp_path / "network.safetensors"
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors_of(network, tmp_path).items()}
    numpy.save_file(tensors, path)
    assert_equal(load_torch(path, km.zoo.small_cnn()), network)
    numpy.save_file({name.replace("fc", "f"): value for name, value in tensors.items()}, path)
    with pytest.raises(ValueError, match="does not keep the order of layers"):
        load_torch(path, km.zoo.small_cnn())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"A \.safetensors file must be complete"):
        load_torch(path, km.zoo.small_cnn())


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch was-here",)


@pytest.mark.parametrize("form", WRITERS)
def test_code_is_refused_by_name_and_not_run(form, torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = WRITERS[form](tmp_path / "checkpoint.pt", {"state_dict": dictionary(small_tensors()), "args": Runs()})
    with pytest.raises(ValueError, match=r"no code is run: .*checkpoint\.pt, which needs posix\.system"):
        load_torch(path, small())
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("form", WRITERS)
def test_damaged_files_are_refused(form, torch, tmp_path):
    whole = WRITERS[form](tmp_path / "whole.pt", dictionary(small_tensors())).read_bytes()
    path = tmp_path / "damaged.pt"
    for length in (0, 10, len(whole) // 2, *range(len(whole) - 24, len(whole), 4)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"must be a complete file of torch\.save. Received: .*damaged\.pt"):
            load_torch(path, small())
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / "nowhere.pt", small())


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    "view", [((3, 3), (3, 2), 0), ((2,), (1,), 8), ((2,), (-1,), 4), ((2,), (1,), -1), ((2, 2), (1,), 0)]
)
def test_tensors_stay_in_their_storage(form, view, torch, tmp_path):
    size, strides, offset = view
    tensor = Tensor(Storage(np.arange(9.0)), size, strides, offset)
    with pytest.raises(ValueError, match=r"a tensor (reaches beyond its storage|is not a view of a storage)"):
        torch_files.read(WRITERS[form](tmp_path / "checkpoint.pt", tensor))


def test_a_storage_larger_than_the_file_is_not_made(torch, tmp_path, monkeypatch):
    large = Storage(np.zeros(3))
    monkeypatch.setattr(Pickler, "persistent_id", lambda self, each: (
        ("storage", sys.modules["torch"].DoubleStorage, "0", "cpu", 2**50) if each is large else None
    ))  # fmt: skip
    with pytest.raises(ValueError, match="a storage is larger than the file"):
        torch_files.read(archive(tmp_path / "checkpoint.pt", [large]))


def without(name):
    return {each: value for each, value in small_tensors().items() if not each.startswith(name)}


WRONG = {
    "another shape": (
        small_tensors() | {"6.weight": np.zeros((5, 35), "float32")},
        {},
        r"6\.weight must have the shape of 'dense.*', in PyTorch's order \(5, 36\). Received: \(5, 35\)",
    ),
    "a layer less": (without("6"), {}, "as many Dense layers as the network. Received: 0"),
    "no bias": (without("0.bias"), {}, r"Layer 'conv2d.*' must be given weight, bias. Received: weight as 0 in"),
    "no statistics": (
        without("2.running"),
        {},
        r"BatchNormalizations with running statistics.*Received: .* with 2\.weight, 2\.bias$",
    ),
    "a normalisation": (
        small_tensors() | {"mean": np.zeros(3, "float32")},
        {},
        "`ignore` skips other tensors. Received: .* with mean$",
    ),
    "numbers for names": ({1: Tensor.of(np.zeros(3))}, {}, r"tensors by name; `key` selects it.*with \[1\]"),
    "no dictionary": (
        [1.0],
        {},
        "A checkpoint must contain a state dictionary of tensors by name;.*Received: .* with list",
    ),
    "several": ({"model": {}, "net": {}}, {}, "`key` must be the key of the state dictionary.*several.*model, net"),
    "another key": ({"model": {}}, {"key": "ema"}, r"with no 'ema': \['model'\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_and_changes_nothing(name, torch, tmp_path):
    value, arguments, message = WRONG[name]
    if isinstance(value, dict) and all(isinstance(each, np.ndarray | np.generic) for each in value.values()):
        value = dictionary(value)
    path, network = archive(tmp_path / "checkpoint.pt", value), small()
    before = network.get_weights()
    with pytest.raises(ValueError, match=message):
        load_torch(path, network, **arguments)
    for ours, theirs in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_key_and_ignore_choose_what_is_loaded(torch, tmp_path):
    tensors, other = small_tensors(), small_tensors()
    checkpoint = {"model": dictionary(other), "ema": dictionary(tensors | {"normalise.mean": np.zeros(2, "float32")})}
    path = archive(tmp_path / "checkpoint.pt", checkpoint)
    network = load_torch(path, small(), key="ema", ignore=["normalise"])
    np.testing.assert_array_equal(network.get_weights()[0], tensors["0.weight"].transpose(2, 3, 1, 0))


def moved(end, shape=(4, 3, 2)):
    """Returns a network with operations that move the values of images before a dense layer."""
    images = keras.Input(shape)
    return keras.Model(images, layers.Dense(5)(end(images)))


MOVES = {
    "flattened": layers.Flatten(),
    "as in PyTorch": lambda x: layers.Flatten()(layers.Permute((3, 1, 2))(x)),
    "nested": lambda x: keras.Sequential([layers.Input((4, 3, 2)), layers.Permute((3, 1, 2)), layers.Flatten()])(x),
    "operations": lambda x: ops.reshape(ops.relu(ops.transpose(x, (0, 3, 1, 2))), (-1, 24)),
    "channels first": lambda x: layers.Flatten(data_format="channels_first")(layers.Permute((3, 1, 2))(x)),
    "in two steps": lambda x: layers.Flatten()(layers.Reshape((12, 2))(x)),
    "with dropout": lambda x: layers.Dropout(0.5)(layers.Flatten()(layers.AveragePooling2D(1)(x))),
    "bfloat16": lambda x: ops.cast(layers.Flatten(dtype="bfloat16")(x), "float32"),
}


@pytest.mark.parametrize("name", MOVES)
def test_features_are_followed_to_the_dense_layer(name, torch, tmp_path):
    """In PyTorch, the dense layer gets flattened images [channels, height, width]."""
    weight = RANDOM.uniform(size=(5, 24)).astype("float32")
    network = moved(MOVES[name])
    tensors = {"fc.weight": weight, "fc.bias": np.zeros(5, "float32")}
    load_torch(archive(tmp_path / "checkpoint.pt", dictionary(tensors)), network)
    x = RANDOM.integers(9, size=(3, 4, 3, 2)).astype("float32")  # integers that bfloat16 represents exactly
    np.testing.assert_allclose(network(x), x.transpose(0, 3, 1, 2).reshape(3, 24) @ weight.T, rtol=1e-5)
    np.testing.assert_array_equal(tensors_of(network, tmp_path)[f"{network.layers[-1].name}.weight"], weight)


def test_a_branch_inside_a_model_is_as_long_as_its_layers(tmp_path):
    x = images = keras.Input((4, 4, 2))
    main = [layers.Conv2D(2, 3, padding="same", use_bias=False, name=f"main{number}") for number in (1, 2)]
    shortcut = layers.BatchNormalization(name="bn")(layers.Conv2D(2, 3, padding="same", name="shortcut")(x))
    x = layers.Add()([shortcut, keras.Sequential([layers.Input((4, 4, 2)), main[0], layers.ReLU(), main[1]])(x)])
    names = tensors_of(keras.Model(images, x), tmp_path)
    assert list(dict.fromkeys(name.partition(".")[0] for name in names)) == ["main1", "main2", "shortcut", "bn"]


def subclassed():
    class Own(keras.Model):
        def call(self, x):
            return x

    return Own()


def of_equal_names():
    x = images = keras.Input((4, 4, 2))
    for _ in range(2):
        x = keras.Sequential([layers.Input((4, 4, 2)), layers.Conv2D(2, 3, padding="same", name="conv")])(x)
    return keras.Model(images, x)


def twice():
    dense = layers.Dense(64)
    return moved(lambda x: dense(dense(layers.Flatten()(x))), (4, 4, 4))


OTHERS = {
    "subclassed": (subclassed, "a network must be functional or Sequential"),
    "wrapped": (lambda: km.Standard(small()), "must not be wrapped by a training method"),
    "depthwise": (lambda: keras.Sequential([keras.Input((4, 4, 1)), layers.DepthwiseConv2D(3)]), "a DepthwiseConv2D"),
    "moved channels": (
        lambda: moved(lambda x: layers.Flatten()(layers.Conv2D(2, 2)(layers.Permute((3, 1, 2))(x)))),
        r"Images must keep Keras's order.* before 'conv2d.*' that moves their values",
    ),
    "joined": (
        lambda: moved(lambda x: layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(x)])),
        "must keep their positions until the next layer with weights.* Received: <Concatenate",
    ),
    "turned round": (
        lambda: moved(lambda x: layers.Flatten()(ops.flip(x, 1))),
        "no other operation may move values.*name=flip",
    ),
    "equal names": (of_equal_names, "must have unique names. Received: several conv"),
    "in two orders": (twice, "called on features in the same order. Received: <Dense"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_other_kinds_are_refused(name, tmp_path):
    make, message = OTHERS[name]
    with pytest.raises(ValueError, match=message):
        save_torch(make(), tmp_path / "network.pt")
    assert not list(tmp_path.iterdir())
