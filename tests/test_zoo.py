"""The networks compared with their PyTorch originals (sizes, padding, initialisation); saving; bad input."""

import math

import keras
import numpy as np
import pytest

from keras_mart import PGD, Linf, zoo
from keras_mart.zoo.parts import Parts

NETWORKS = {
    "small_cnn": lambda **kwargs: zoo.small_cnn(**{"input_shape": (28, 28, 3)} | kwargs),
    "resnet18": lambda **kwargs: zoo.resnet18(**kwargs),
    "wide_resnet": lambda **kwargs: zoo.wide_resnet(10, 1, **kwargs),
    "vit_tiny": lambda **kwargs: zoo.vit_tiny(depth=1, width=12, **kwargs),
}
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))  # the usual mean and std of CIFAR-10's channels
# The variations of Gowal et al. and Wang et al.
MODERN = {"activation": "silu", "bn_momentum": 0.99, "padding": "same", "normalisation": "cifar10"}


def trainable(network):
    return sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)


def images_for(network, count=2):
    return np.random.default_rng(1).uniform(size=(count, *network.input_shape[1:])).astype("float32")


def shake(network):
    """Randomises all weights, so that neither zero initialisation nor initial statistics hide an error."""
    random = np.random.default_rng(2)
    for variable in network.variables:
        if variable.dtype == "float32":
            variable.assign(random.uniform(0.01, 0.1, variable.shape))


# --- sizes ---


def wide_resnet_parameters(depth, width, classes=10):
    """Counts the parameters of convolutions and BatchNormalizations, block by block, and of the last layer."""
    before, total = 16, 3 * 3 * 3 * 16
    for filters in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            total += 2 * before + 9 * before * filters + 2 * filters + 9 * filters * filters
            total += before * filters if before != filters else 0
            before = filters
    return total + 2 * before + before * classes + classes


def test_parameter_counts_are_those_of_the_originals():
    assert trainable(zoo.small_cnn()) == 312_202
    assert trainable(zoo.resnet18()) == 11_173_962
    assert wide_resnet_parameters(34, 10) == 46_160_474
    assert wide_resnet_parameters(28, 10) == 36_479_194
    assert trainable(zoo.wide_resnet(16, 2)) == wide_resnet_parameters(16, 2)
    assert trainable(zoo.resnet(34)) == 21_282_122
    assert trainable(zoo.preact_resnet18()) == 11_172_170
    assert trainable(zoo.preact_resnet18(**MODERN, shortcut="3x3")) == 12_548_426
    # DeiT-Ti for 32x32 pixels has 5,362,762: its patch bias and class token have 192 additional parameters each.
    assert trainable(zoo.vit_tiny()) == 5_362_762 - 2 * 192


@pytest.mark.parametrize("name", NETWORKS)
def test_output_is_one_logit_a_class(name):
    network = NETWORKS[name](num_classes=3)
    assert network.name.startswith(name)
    assert network(images_for(network, count=1)).shape == (1, 3)


def test_defaults():
    assert zoo.small_cnn().input_shape == (None, 28, 28, 1)
    assert zoo.resnet18(num_classes=10).input_shape == (None, 32, 32, 3)
    assert zoo.wide_resnet(10, 1).input_shape == (None, 32, 32, 3)
    assert zoo.vit_tiny(depth=1).input_shape == (None, 32, 32, 3)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet", "vit_tiny"])
def test_other_image_sizes(name):
    network = NETWORKS[name](input_shape=(20, 24, 1))
    assert network(images_for(network)).shape == (2, 10)


def test_weights_are_named_after_their_place():
    paths = {variable.path for variable in zoo.resnet18().variables}
    assert {"stem_conv/kernel", "stage2_block1_shortcut_conv/kernel", "stage4_block2_bn2/gamma", "logits/bias"} <= paths
    paths = {variable.path for variable in zoo.wide_resnet(10, 2).variables}
    assert {"stem_conv/kernel", "stage3_block1_conv2/kernel", "stage1_block1_bn1/beta", "final_bn/gamma"} <= paths


# --- padding ---


@pytest.mark.parametrize(
    "padding, position, expected",
    [
        ("torch", (0, 0), [[5, 0], [0, 0]]),
        ("torch", (1, 1), [[9, 7], [3, 1]]),
        ("torch", (3, 3), [[0, 0], [0, 9]]),
        ("torch", (2, 3), [[0, 0], [0, 6]]),
        ("same", (0, 0), [[1, 0], [0, 0]]),
        ("same", (1, 1), [[5, 0], [0, 0]]),
        ("same", (2, 2), [[9, 7], [3, 1]]),
    ],
)
def test_strided_convolution_pads(padding, position, expected):
    # The kernel is 1 to 9, row by row. With one pixel of padding, its windows begin at rows and columns -1 and 1 of a
    # 4x4 image, so an impulse at (0, 0) meets the centre of the first window, 5, and one at (1, 1) a corner of each
    # of the four. With TensorFlow's "same", windows begin at 0 and 2.
    images = keras.Input((4, 4, 1))
    network = keras.Model(images, Parts(padding=padding).convolution(images, 1, 3, 2, name="conv"))
    network.get_layer("conv").set_weights([np.arange(1.0, 10.0).reshape(3, 3, 1, 1)])
    impulse = np.zeros((1, 4, 4, 1), "float32")
    impulse[0, position[0], position[1], 0] = 1.0
    np.testing.assert_array_equal(network(impulse)[0, :, :, 0], expected)


@pytest.mark.parametrize("name, strided", [("resnet18", 6), ("wide_resnet", 4)])
def test_no_strided_convolution_pads_unevenly(name, strided):
    convolutions = [layer for layer in NETWORKS[name]().layers if isinstance(layer, keras.layers.Conv2D)]
    found = [layer for layer in convolutions if layer.strides == (2, 2)]
    assert len(found) == strided
    assert all(layer.padding == "valid" for layer in found)


# --- blocks ---


def test_bottlenecks():
    network = zoo.resnet(50, input_shape=(8, 8, 3))
    assert trainable(network) == 23_520_842
    for block, strides, before in ((1, 2, 256), (2, 1, 512)):
        found = [network.get_layer(f"stage2_block{block}_conv{number}") for number in (1, 2, 3)]
        assert [each.kernel.shape for each in found] == [(1, 1, before, 128), (3, 3, 128, 128), (1, 1, 128, 512)]
        assert [each.strides[0] for each in found] == [1, strides, 1]
    assert "stage4_block3_conv3" in {layer.name for layer in network.layers}
    assert "stage1_block1_shortcut_conv" in {layer.name for layer in network.layers}  # 64 become 256


@pytest.mark.parametrize("shortcut, seen", [("1x1", "stage2_block1_silu1"), ("3x3", "stage1_block2_add")])
def test_shortcuts_of_preact_resnet18(shortcut, seen):
    network = zoo.preact_resnet18(**MODERN, shortcut=shortcut)
    layer = network.get_layer("stage2_block1_shortcut_conv")
    assert layer.input is network.get_layer(seen).output
    assert (*layer.kernel_size, *layer.strides) == (*map(int, shortcut.split("x")), 2, 2)


@pytest.mark.parametrize("name", ["preact_resnet18", "wide_resnet"])
def test_variations_reach_every_layer(name):
    network = getattr(zoo, name)(**MODERN, **({"depth": 22, "width": 1} if name == "wide_resnet" else {}))
    normalisations = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    activations = [layer for layer in network.layers if isinstance(layer, keras.layers.Activation)]
    strided = [layer for layer in network.layers if getattr(layer, "strides", None) == (2, 2)]
    assert len(normalisations) == len(activations) > 16
    assert {(layer.momentum, layer.epsilon) for layer in normalisations} == {(0.99, 1e-5)}
    assert {layer.activation for layer in activations} == {keras.activations.silu}
    assert strided and {layer.padding for layer in strided} == {"same"}


def in_numpy(network, images, heads):
    """Returns the logits of a `vit_tiny` of one block, computed in float64."""
    weights = {variable.path: variable.numpy().astype("float64") for variable in network.variables}

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def projected(x, name):
        kernel, bias = (weights[f"block1_attention/{name}/{each}"] for each in ("kernel", "bias"))
        return np.einsum("btw,whd->bhtd", x, kernel) + bias[:, None]

    patches = [images[:, row : row + 4, column : column + 4] for row in (0, 4) for column in (0, 4)]
    x = np.stack([np.zeros((len(images), 48)), *(patch.reshape(len(images), -1) for patch in patches)], axis=1)
    x = x @ weights["embedding/kernel"] + weights["embedding/bias"]
    query, key, value = (projected(norm(x, "block1_norm1"), name) for name in ("query", "key", "value"))
    scores = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(x.shape[-1] / heads))
    attended = scores / scores.sum(-1, keepdims=True) @ value
    x = x + np.einsum("bhtd,hdw->btw", attended, weights["block1_attention/attention_output/kernel"])
    x = x + weights["block1_attention/attention_output/bias"]
    hidden = dense(norm(x, "block1_norm2"), "block1_mlp1")
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
    x = x + dense(hidden, "block1_mlp2")
    return dense(norm(x[:, 0], "final_norm"), "logits")


def test_vit_tiny_is_the_formula():
    network = zoo.vit_tiny(input_shape=(8, 8, 3), depth=1, width=12)
    random = np.random.default_rng(0)
    for variable in network.variables:
        variable.assign(random.normal(size=variable.shape))
    images = images_for(network)
    np.testing.assert_allclose(network(images), in_numpy(network, images, heads=3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy, tolerance", [("mixed_bfloat16", 0.05), ("mixed_float16", 0.005)])
def test_vit_tiny_in_half_precision_is_attacked(policy, tolerance):
    exact = zoo.vit_tiny(depth=1, width=12)
    keras.config.set_dtype_policy(policy)
    try:
        network = zoo.vit_tiny(depth=1, width=12)
    finally:
        keras.config.set_dtype_policy("float32")
    network.set_weights(exact.get_weights())
    images = images_for(exact, 8)
    np.testing.assert_allclose(network(images), exact(images), atol=tolerance * np.abs(exact(images)).max())
    labels = np.argmax(exact(images), axis=-1)
    adversarial = PGD(Linf(8 / 255), 3)(network, images, labels, 0)
    rows = np.arange(len(labels))
    assert np.all(np.asarray(exact(adversarial))[rows, labels] < np.asarray(exact(images))[rows, labels])


def test_imagenet_resnet50_is_that_of_keras():
    network = zoo.imagenet_resnet50(7, (32, 32, 3))
    known = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=7, classifier_activation=None)
    known.set_weights(network.get_weights())
    images = images_for(network)
    by_hand = (images - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(network(images), known(by_hand), rtol=1e-3, atol=1e-4)
    assert network.outputs[0].dtype == "float32" and network.name == "imagenet_resnet50"


# --- initialisation and constants ---


def kernel(network, layer):
    return network.get_layer(layer).kernel.numpy()


def assert_uniform(values, fan_in):
    """Checks for U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), whose standard deviation is the limit divided by sqrt(3)."""
    limit = fan_in**-0.5
    assert np.abs(values).max() <= limit
    np.testing.assert_allclose(values.std(), limit / np.sqrt(3), rtol=0.05)


def test_resnet18_starts_like_pytorch():
    network = zoo.resnet18(num_classes=100)
    assert_uniform(kernel(network, "stem_conv"), fan_in=27)
    assert_uniform(kernel(network, "stage2_block1_conv1"), fan_in=9 * 64)
    assert_uniform(kernel(network, "stage2_block1_shortcut_conv"), fan_in=64)
    assert_uniform(kernel(network, "logits"), fan_in=512)
    bias = network.get_layer("logits").bias.numpy()
    assert np.abs(bias).max() <= 512**-0.5 and bias.std() > 0.4 * 512**-0.5
    assert not np.array_equal(kernel(network, "stage1_block1_conv1"), kernel(network, "stage1_block1_conv2"))


def test_wide_resnet_starts_like_the_official_code():
    network = zoo.wide_resnet(10, 4)
    np.testing.assert_allclose(kernel(network, "stage3_block1_conv1").std(), np.sqrt(2 / (9 * 256)), rtol=0.02)
    np.testing.assert_allclose(kernel(network, "stage3_block1_shortcut_conv").std(), np.sqrt(2 / 256), rtol=0.02)
    assert np.abs(kernel(network, "stage3_block1_conv1")).max() > 3 * np.sqrt(2 / (9 * 256))  # not truncated
    assert_uniform(kernel(network, "logits"), fan_in=256)
    np.testing.assert_array_equal(network.get_layer("logits").bias.numpy(), 0.0)


def test_preact_resnet18_starts_like_pytorch():
    network = zoo.preact_resnet18(shortcut="3x3")
    for layer, fan_in in (("stage2_block1_conv1", 9 * 64), ("stage2_block1_shortcut_conv", 9 * 64), ("logits", 512)):
        assert_uniform(kernel(network, layer), fan_in)
    assert network.get_layer("logits").bias.numpy().std() > 0


def test_vit_tiny_starts_like_deit():
    network = zoo.vit_tiny(depth=1)
    weights = {variable.path: variable.numpy() for variable in network.variables}
    assert_uniform(weights["embedding/kernel"], fan_in=48)
    attention = [weights[f"block1_attention/{name}/kernel"] for name in ("query", "key", "value", "attention_output")]
    drawn = [*attention, weights["embedding/bias"], weights["block1_mlp1/kernel"], weights["block1_mlp2/kernel"]]
    for each in (*drawn, weights["logits/kernel"]):
        np.testing.assert_allclose(each.std(), 0.02, rtol=0.1)
    assert not np.array_equal(attention[0], attention[1])
    assert network.get_layer("block1_norm1").epsilon == 1e-6
    assert not any(weights[f"block1_{name}/bias"].any() for name in ("mlp1", "mlp2", "attention/query"))


def test_small_cnn_starts_like_the_official_code():
    network = zoo.small_cnn()
    np.testing.assert_allclose(kernel(network, "block2_conv2").std(), np.sqrt(2 / (9 * 64)), rtol=0.03)
    assert_uniform(kernel(network, "dense1"), fan_in=64 * 4 * 4)
    assert_uniform(network.get_layer("dense1").bias.numpy(), fan_in=64 * 4 * 4)
    assert_uniform(kernel(network, "dense2"), fan_in=200)
    np.testing.assert_array_equal(network(images_for(network)), np.zeros((2, 10)))


def test_small_cnn_is_the_official_one_layer_by_layer():
    names = [type(layer).__name__ for layer in zoo.small_cnn().layers]
    block = ["Conv2D", "Conv2D", "MaxPooling2D"]
    assert names == ["InputLayer", *block, *block, "Flatten", "Dense", "Dropout", "Dense", "Dense"]
    assert "Dropout" not in [type(layer).__name__ for layer in zoo.small_cnn(dropout=0.0).layers]


def test_batch_normalisation_has_pytorch_constants():
    for network in (zoo.resnet18(), zoo.wide_resnet(10, 1)):
        found = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert found and all((layer.momentum, layer.epsilon) == (0.9, 1e-5) for layer in found)


def test_wide_resnet_drops_out_once_a_block():
    network = zoo.wide_resnet(16, 1, dropout=0.3)
    dropouts = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    assert len(dropouts) == 6 and all(layer.rate == 0.3 for layer in dropouts)


# --- small images, normalisation, precision, saving ---


def test_small_images_are_padded_in_the_centre():
    padded, plain = zoo.small_cnn(input_shape=(8, 9, 1)), zoo.small_cnn()
    shake(padded)
    plain.set_weights(padded.get_weights())
    images = images_for(padded)
    by_hand = np.zeros((2, 28, 28, 1), "float32")
    by_hand[:, 10:18, 9:18] = images  # 20 rows and 19 columns are missing; the odd one goes to the right
    np.testing.assert_allclose(padded(images), plain(by_hand), rtol=1e-6)


def test_larger_images_work():
    network = zoo.small_cnn(input_shape=(32, 32, 3))
    assert network(images_for(network)).shape == (2, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_normalisation_comes_first_and_is_saved_without_custom_objects(name, tmp_path):
    normalised, plain = NETWORKS[name](normalisation=CIFAR10), NETWORKS[name]()
    shake(normalised)
    plain.set_weights(normalised.get_weights())
    images = images_for(normalised)
    by_hand = (images - np.float32(CIFAR10[0])) / np.float32(CIFAR10[1])
    np.testing.assert_allclose(normalised(images), plain(by_hand), rtol=1e-3)
    normalised.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(normalised(images), again(images))
    assert again.to_json() == normalised.to_json()


def test_normalisation_takes_arrays_and_names():
    zoo.small_cnn(normalisation=(np.array([0.1307]), np.array([0.3081])))
    named, given = (NETWORKS["vit_tiny"](normalisation=each) for each in ("cifar10", CIFAR10))
    assert named.to_json() == given.to_json()


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_gives_float32_logits(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = NETWORKS[name](normalisation=CIFAR10)
    finally:
        keras.config.set_dtype_policy("float32")
    assert network(images_for(network)).dtype == "float32"
    assert all(variable.dtype == "float32" for variable in network.trainable_variables)
    assert network.layers[-2].compute_dtype == "bfloat16"


def with_keras_own(layer):
    norm = isinstance(layer, keras.layers.BatchNormalization)
    cls = keras.layers.BatchNormalization if norm else type(layer)
    return cls.from_config(layer.get_config())


def test_weights_fit_a_network_of_keras_own_layers(tmp_path):
    network = zoo.wide_resnet(10, 1)
    shake(network)
    plain = keras.models.clone_model(network, clone_function=with_keras_own)
    assert all(type(layer).__module__.startswith("keras.src.") for layer in plain.layers)
    network.save_weights(tmp_path / "network.weights.h5")
    plain.load_weights(tmp_path / "network.weights.h5")
    images = images_for(network)
    np.testing.assert_allclose(plain(images), network(images), rtol=1e-5)
    shake(network)
    network.set_weights(plain.get_weights())
    np.testing.assert_allclose(plain(images), network(images), rtol=1e-5)


# --- bad input ---


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 1}, "`num_classes` must be an integer of at least 2. Received: num_classes=1"),
        ({"num_classes": 2.5}, "`num_classes` must be an integer of at least 2. Received: num_classes=2.5"),
        ({"normalisation": ((0.5,), (0.5,))}, "`normalisation` must be a pair .* each of the 3 channels"),
        ({"normalisation": ((0.5,) * 3, (0.5,) * 2)}, "`normalisation` must be a pair"),
        ({"normalisation": ((0.5,) * 3, (0.0,) * 3)}, "a positive std"),
        ({"normalisation": "imagnet"}, "`normalisation` must be one of cifar10, .* Did you mean 'imagenet'?"),
        ({"normalisation": "cifar10", "input_shape": (32, 32, 1)}, "for 3 channels. Received: normalisation=cifar10"),
    ],
)
def test_refuses(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        NETWORKS[name](**arguments)


@pytest.mark.parametrize("network", [zoo.small_cnn, zoo.resnet18, zoo.preact_resnet18, zoo.wide_resnet, zoo.vit_tiny])
@pytest.mark.parametrize("input_shape", [(28, 28), (1, 28, 28, 1), (28, None, 1), (0, 28, 1), 28])
def test_refuses_an_input_shape(network, input_shape):
    with pytest.raises(ValueError, match=r"`input_shape` must be .* Received: input_shape="):
        network(input_shape=input_shape)


@pytest.mark.parametrize("depth", [4, 9, 33, 35, 16.0])
def test_refuses_a_depth(depth):
    with pytest.raises(ValueError, match=f"`depth` must be 6 n . 4 .* Received: depth={depth}"):
        zoo.wide_resnet(depth, 1)


def test_refuses_a_width():
    with pytest.raises(ValueError, match=r"`width` must be an integer of at least 1\. Received: width=0"):
        zoo.wide_resnet(10, 0)


@pytest.mark.parametrize("network", [zoo.small_cnn, zoo.wide_resnet])
@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_refuses_a_dropout(network, dropout):
    with pytest.raises(ValueError, match=f"`dropout` must be at least 0 and below 1. Received: dropout={dropout}"):
        network(dropout=dropout)


def test_refuses_a_depth_of_resnet():
    with pytest.raises(ValueError, match=r"`depth` must be one of 18, 34, 50\. Received: 101"):
        zoo.resnet(101)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation": "softmax"}, "`activation` must be one of relu, .* Received: 'softmax'"),
        ({"padding": "valid"}, "`padding` must be one of torch, same. Received: 'valid'"),
        ({"bn_momentum": 1}, "`bn_momentum` must be at least 0 and below 1. Received: bn_momentum=1"),
    ],
)
def test_refuses_a_variation(options, message):
    for network in (zoo.preact_resnet18, zoo.wide_resnet):
        with pytest.raises(ValueError, match=message):
            network(**options)


def test_refuses_a_shortcut():
    with pytest.raises(ValueError, match=r"`shortcut` must be one of 1x1, 3x3\. Received: '2x2'"):
        zoo.preact_resnet18(shortcut="2x2")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 100}, "`width` must be a multiple of `heads`. Received: width=100, heads=3"),
        ({"depth": 0}, "`depth` must be a positive integer. Received: depth=0"),
        ({"input_shape": (30, 32, 3)}, r"must be multiples of `patch_size`. Received: input_shape=\(30, 32, 3\)"),
    ],
)
def test_refuses_of_vit_tiny(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.vit_tiny(**options)
