"""The views of a network: same outputs, really folded, and always of the current weights."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import conv_network, images_and_labels, relative, supported
from keras import layers, ops

import keras_mart as km
from keras_mart import folding
from keras_mart.attacks.inference import inference

SHAPE = (6, 6, 3)
X, Y = images_and_labels(shape=SHAPE)
ROUNDING = 1e-5  # relative, of float32 after a dozen layers
KINKS = 1e-2  # relative, of gradients: rounding may move a unit or two across the kink of their ReLU
HALF_ROUNDING = {"mixed_bfloat16": 2.0**-8, "mixed_float16": 2.0**-11}


@pytest.fixture(autouse=True)
def as_by_default():
    yield
    folding.enable()
    keras.config.set_dtype_policy("float32")


def shake(network):
    """Sets all weights to random values, so that initial statistics and zero biases hide no mistake."""
    generator = np.random.default_rng(1)
    for variable in network.variables:
        if "float" not in variable.dtype:  # a seed
            continue
        if variable.name in ("gamma", "moving_variance", "moving_stddev", "renorm_stddev"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        else:
            fan_in = max(1, int(np.prod(variable.shape[:-1])))
            variable.assign(generator.normal(0, fan_in**-0.5, variable.shape))
    return network


def logits_and_gradient(function, images):
    """Returns logits, and the images' gradient of their weighted sum; an unweighted sum might cancel."""
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = tf.cast(function(images), "float32")
        total = tf.reduce_sum(logits * np.linspace(1, 2, logits.shape[-1], dtype="float32"))
    return logits, tape.gradient(total, images)


def in_evaluation(network):
    return lambda images: network(images, training=False)


def assert_same(function, expected, images):
    (logits, gradient), (wanted, wanted_gradient) = (logits_and_gradient(each, images) for each in (function, expected))
    assert relative(logits, wanted) < ROUNDING
    assert relative(gradient, wanted_gradient) < KINKS


def count(function, shape, kinds=("Mul",)):
    """Returns the number of operations of these kinds on batches, that is, on tensors of unknown batch size."""
    graph = tf.function(function).get_concrete_function(tf.TensorSpec([None, *shape])).graph
    found = [op for op in graph.get_operations() if op.type in kinds and op.outputs[0].shape.rank]
    return sum(op.outputs[0].shape[0] is None for op in found)


# --- equal in evaluation mode, and folded ---

# With the number of normalisations that cannot be folded: those after an addition, a pooling or a concatenation, or
# after a convolution with other consumers. Each is one multiplication of a batch; these networks have no others.
NETWORKS = {
    "resnet18": (lambda: km.zoo.resnet18(input_shape=(8, 8, 3)), 0),
    "wide_resnet": (lambda: km.zoo.wide_resnet(10, 1, input_shape=(8, 8, 3)), 4),
    "same": (lambda: km.zoo.wide_resnet(10, 1, input_shape=(8, 8, 3), padding="same"), 4),
    "mobilenet_v2": (lambda: mobilenet_v2(), 0),
}


def mobilenet_v2():
    options = {"alpha": 0.35, "weights": None, "classes": 5, "classifier_activation": None}
    return keras.applications.MobileNetV2((32, 32, 3), **options)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "mobilenet_v2" else []) for name in NETWORKS]
)
def test_view_is_the_network(name):
    build, left = NETWORKS[name]
    network = shake(build())
    shape, view = network.input_shape[1:], folding.view(network)
    assert_same(view, in_evaluation(network), images_and_labels(2, shape)[0])
    assert count(view, shape) == left


def random_network(seed):
    """Returns a network with random operations around convolutions; at least its first block can be folded."""
    pick = random.Random(seed)
    flip = lambda: pick.random() < 0.5  # noqa: E731

    def normalisation():
        return layers.BatchNormalization(epsilon=pick.choice([1e-5, 1e-3]), scale=flip(), center=flip())

    def convolution(x, filters=None, strides=1, activation=None):
        kind = pick.choice(["conv", "conv", "depthwise", "dense"])
        options = {"use_bias": flip(), "activation": activation}
        if kind == "dense":
            return layers.Dense(filters or pick.choice([3, 4, 6]), **options)
        padding = "valid" if min(x.shape[1:3]) > 4 and filters is None and flip() else "same"
        options |= {"padding": padding, "strides": strides}
        if kind == "depthwise" and (filters is None or filters == x.shape[-1]):
            return layers.DepthwiseConv2D(3, depth_multiplier=1 if filters else pick.choice([1, 2]), **options)
        return layers.Conv2D(filters or pick.choice([3, 4, 6]), pick.choice([1, 3]), **options)

    def block(x):
        return layers.ReLU()(normalisation()(convolution(x, strides=pick.choice([1, 1, 2]))(x)))

    def nested(x):
        inner = keras.Input(x.shape[1:])
        if flip():
            return keras.Sequential([inner, convolution(x), normalisation(), layers.ReLU()])(x)
        return keras.Model(inner, block(inner))(x)

    def shared(x):
        layer, norm = convolution(x, filters=x.shape[-1]), normalisation()
        return layers.Add()([norm(layer(x)), norm(layer(layer(x)))])

    def branches(x):
        y = convolution(x)(x)
        return layers.Concatenate()([normalisation()(y), layers.ReLU()(normalisation()(y)), y])

    def residual(x):
        y = convolution(x, filters=x.shape[-1])(x)
        return layers.ReLU()(layers.Add()([x, normalisation()(y)]))

    moves = [
        block, block, residual, branches, shared, nested,
        lambda x: normalisation()(convolution(x, activation="tanh")(x)),
        lambda x: normalisation()(normalisation()(convolution(x)(x))),
        lambda x: normalisation()(layers.Dropout(0.5)(convolution(x)(x))),
        lambda x: layers.Activation("elu")(convolution(x)(x)),
        lambda x: normalisation()(pick.choice([layers.MaxPooling2D, layers.AveragePooling2D])(2, padding="same")(x)),
    ]  # fmt: skip
    images = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(images)))
    read, unread = [], [x]
    for move in pick.choices(moves, k=7):
        x = pick.choice([unread[-1], unread[-1], *read, *unread])
        unread = [other for other in unread if other is not x]
        read.append(x)
        unread.append(move(x))
    pooled = [layers.GlobalAveragePooling2D()(x) for x in unread]
    x = layers.Concatenate()(pooled) if len(pooled) > 1 else pooled[0]
    x = normalisation()(layers.Dense(6)(x))
    return keras.Model(images, layers.Dense(3)(x))


@pytest.mark.parametrize("seed", range(10))
def test_view_of_any_graph_is_the_network(seed):
    network = shake(random_network(seed))
    shape = network.input_shape[1:]
    view, plain = folding.view(network), in_evaluation(network)
    assert_same(view, plain, images_and_labels(4, shape)[0])
    assert count(view, shape) < count(plain, shape)


def test_operations_of_several_arguments_and_outputs():
    first, second = keras.Input((6, 6, 2)), keras.Input((6, 6, 2))
    inner = keras.Model([first, second], layers.Add()([layers.Conv2D(2, 1)(first), layers.ReLU()(second)]))
    images = keras.Input(SHAPE)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(1.0 - images))
    halves = ops.split(x, 2, axis=-1)
    network = shake(keras.Model(images, layers.Dense(3)(ops.mean(inner([inner(halves), halves[1]]), axis=(1, 2)))))
    view = folding.view(network)
    assert_same(view, in_evaluation(network), X)
    assert count(view, SHAPE) == 0
    assert_trains_the_same(folding.training_view(network), network)


def test_a_network_compiled_with_a_loss_that_keras_cannot_load():
    network = shake(functional(conv_bn))
    network.compile("sgd", loss=lambda labels, logits: ops.mean(logits))
    assert_same(folding.view(network), in_evaluation(network), X)


# --- what must not be folded ---


def functional(body, cls=keras.Model):
    images = keras.Input(SHAPE)
    return cls(images, layers.Dense(3)(layers.Flatten()(body(images))))


def conv_bn(images, conv=None, norm=None, **call):
    return (norm or layers.BatchNormalization())((conv or layers.Conv2D(4, 3))(images), **call)


def one_normalisation(images):
    norm = layers.BatchNormalization()
    return layers.Add()([norm(layers.Conv2D(4, 3)(images)), norm(layers.Conv2D(4, 3)(images))])


def one_convolution(images):
    conv = layers.Conv2D(3, 3, padding="same")
    return layers.BatchNormalization()(conv(conv(images)))


def read_twice(images):
    x = layers.Conv2D(4, 3)(images)
    return layers.Add()([layers.BatchNormalization()(x), layers.BatchNormalization()(layers.ReLU()(x))])


def read_by_an_addition(images):
    x = layers.Conv2D(4, 3)(images)
    return layers.Add()([layers.BatchNormalization()(x), x])


def masked_by_an_argument(images):
    x = layers.Conv2D(4, 3, padding="same")(images)
    return layers.BatchNormalization()(x, mask=ops.any(images > 0.5, axis=-1))


def masked(images):
    x = layers.Masking(0.0)(layers.Reshape((36, 3))(layers.ReLU(threshold=0.6)(images)))
    pooled = layers.GlobalAveragePooling1D()(
        layers.Dense(4)(x)
    )  # of the positions that the mask, which Dense passes on, leaves
    return layers.BatchNormalization()(pooled)


def mask_handed_on(images):
    x = layers.Masking(0.0)(layers.Reshape((36, 3))(layers.ReLU(threshold=0.6)(images)))
    return layers.BatchNormalization()(pooled_in_float32(x))


def mask_given_and_handed_on(images):
    x = layers.Reshape((36, 3))(images)
    return pooled_in_float32(layers.BatchNormalization()(x, mask=ops.any(x > 0.7, axis=-1)))


def pooled_in_float32(x):
    # The pooling has a different dtype than its inputs, so that only these carry the mask, not its call in the graph.
    return layers.GlobalAveragePooling1D(dtype="float32")(layers.Dense(4, dtype="mixed_bfloat16")(x))


def with_lora():
    dense = layers.Dense(4)
    network = functional(lambda images: conv_bn(images, dense))
    dense.enable_lora(2)
    return network


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = layers.Conv2D(4, 3), layers.BatchNormalization()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, images, training=None):
        return self.dense(self.flatten(self.norm(self.conv(images), training=training)))


class Doubled(keras.Model):
    """A functional model with its own `call`."""

    def call(self, inputs, training=None, mask=None):
        return super().call(2 * inputs, training=training)


class DoubledSequential(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return super().call(2 * inputs, training=training)


class Halved(layers.Conv2D):
    """A convolution whose `call` does more."""

    def call(self, inputs):
        return super().call(inputs) / 2


def sequential(cls=keras.Sequential):
    return cls([layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3)])


UNFOLDED = {
    "own activation": lambda: functional(lambda images: conv_bn(images, layers.Conv2D(4, 3, activation="relu"))),
    "another axis": lambda: functional(lambda images: conv_bn(images, norm=layers.BatchNormalization(axis=1))),
    "another kind of convolution": lambda: functional(lambda images: conv_bn(images, Halved(4, 3))),
    "one normalisation of two": lambda: functional(one_normalisation),
    "one convolution twice": lambda: functional(one_convolution),
    "read twice": lambda: functional(read_twice),
    "read by an addition": lambda: functional(read_by_an_addition),
    "masked": lambda: functional(masked),
    "masked by an argument": lambda: functional(masked_by_an_argument),
    "mask handed on": lambda: functional(mask_handed_on),
    "mask given and handed on": lambda: functional(mask_given_and_handed_on),
    "renorm": lambda: functional(lambda images: conv_bn(images, norm=layers.BatchNormalization(renorm=True))),
    "lora": with_lora,
    "subclassed": Subclassed,
    "own call": lambda: functional(conv_bn, Doubled),
    "own call of a sequential": lambda: sequential(DoubledSequential),
}


def test_view_of_a_transformer_is_the_network():
    network = shake(km.zoo.vit_tiny(3, SHAPE, patch_size=3, depth=2, width=6, normalisation="cifar10"))
    assert_same(folding.view(network), in_evaluation(network), X)
    assert folding.graph_of(network) is not None


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size, stride, channels", [(4, 2, 1), (2, 2, 3), (6, 3, 2), (4, 4, 1), (3, 2, 1)])
@pytest.mark.parametrize("height", [12, 13, 14, 15])
def test_gradients_of_strided_convolutions(height, size, stride, channels, padding):
    images = tf.random.stateless_normal([2, height, height + 1, channels], [0, 0])
    layer = keras.layers.Conv2D(5, size, stride, padding)
    network = keras.Sequential([keras.Input(images.shape[1:]), layer])

    def gradients(logits):
        with tf.GradientTape() as tape:
            tape.watch(images)
            value = ops.sum(ops.square(logits()(images)))
        return tape.gradient(value, [images, layer.kernel.value])

    found = gradients(lambda: folding.view(network))
    for one, other in zip(found, gradients(lambda: network), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", supported(UNFOLDED))
def test_what_cannot_be_folded_is_called_as_it_is(name):
    network = UNFOLDED[name]()
    network(X)
    shake(network)
    view, plain = folding.view(network), in_evaluation(network)
    assert_same(view, plain, X)
    assert count(view, SHAPE) == count(plain, SHAPE) > 0


def test_a_network_without_a_shape_yet():
    network = sequential()
    view = folding.view(network)
    view(tf.constant(X))
    assert_same(view, in_evaluation(shake(network)), X)
    assert count(folding.view(network), SHAPE) == 0  # it can be folded now


# --- current weights ---


def test_a_trace_follows_the_weights():
    network = shake(functional(conv_bn))
    viewed = tf.function(lambda images: folding.view(network)(images))
    attack, arguments = km.PGD(km.Linf(0.1), 3), (network, X, Y, 1)
    viewed(tf.constant(X)), attack(*arguments)
    for variable in network.variables:
        variable.assign(variable * 1.5)
    expected, again = network(X, training=False), keras.models.clone_model(network)
    again.set_weights(network.get_weights())
    assert relative(viewed(tf.constant(X)), expected) < ROUNDING
    assert relative(folding.view(network)(tf.constant(X)), expected) < ROUNDING
    np.testing.assert_array_equal(attack(*arguments), attack(again, *arguments[1:]))


@pytest.mark.parametrize("enabled", [True, False])
def test_disabled_and_enabled(enabled):
    network = shake(functional(conv_bn))
    folding.enable() if enabled else folding.disable()
    assert folding.enabled() == enabled
    assert count(folding.view(network), SHAPE) == (0 if enabled else 1)
    fused = count(folding.training_view(network), SHAPE, ["FusedBatchNormV3"])
    assert fused == (1 if enabled else 0)
    if enabled:
        assert_same(folding.view(network), in_evaluation(network), X)


def test_the_view_is_no_part_of_the_model(tmp_path):
    model = km.AT(functional(conv_bn), km.PGD(km.L2(0.5), 1), seed=0)
    model.compile("sgd", run_eagerly=True)
    paths = [variable.path for variable in model.variables]
    model.fit(X, Y, batch_size=4, verbose=0)
    model.attack(model, X, Y)
    assert [variable.path for variable in model.variables] == paths
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(X), model(X))


# --- precision ---


def deep(policy, norm=layers.BatchNormalization):
    """Returns convolutions with normalisations of many scales; logits have the dtype of the policy."""
    keras.config.set_dtype_policy(policy)
    try:
        x = images = keras.Input(SHAPE)
        for filters in (8, 12, 16):
            x = norm(epsilon=1e-5)(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
            x = layers.Activation("elu")(x)  # no kink at which rounding could turn a gradient on or off
        return keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("policy", HALF_ROUNDING)
@pytest.mark.parametrize("norm", [layers.BatchNormalization, km.layers.BatchNormalization], ids=["keras", "ours"])
def test_half_precision_loses_no_more_than_the_network(policy, norm):
    exact, network = shake(deep("float32", norm)), deep(policy, norm)
    network.set_weights(exact.get_weights())
    images = images_and_labels(32, SHAPE)[0]
    view = folding.view(network)
    assert view(tf.constant(images)).dtype == network(images, training=False).dtype == policy.removeprefix("mixed_")
    expected = logits_and_gradient(in_evaluation(exact), images)
    plain = logits_and_gradient(in_evaluation(network), images)
    for got, ours, wanted in zip(logits_and_gradient(view, images), plain, expected, strict=True):
        assert relative(got, wanted) < min(2 * relative(ours, wanted), 8 * HALF_ROUNDING[policy])


def test_an_activation_that_reads_a_variable_in_half_precision():
    slope = keras.Variable(0.3)
    keras.config.set_dtype_policy("mixed_bfloat16")
    network = shake(functional(layers.Conv2D(4, 3, activation=lambda x: ops.maximum(x, slope * x))))
    keras.config.set_dtype_policy("float32")
    assert folding.view(network)(tf.constant(X)).dtype == network(X, training=False).dtype == "bfloat16"
    assert_same(folding.view(network), in_evaluation(network), X)


def casts_in_loops(network, attack):
    """Returns the shapes of all tensors that the loops of an attack cast from float32."""
    trace = tf.function(lambda images, labels: attack.perturb(inference(network), images, labels, (0, 0)))
    graph = trace.get_concrete_function(tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None], "int32")).graph
    nodes = [node for function in graph.as_graph_def(add_shapes=True).library.function for node in function.node_def]
    casts = [node for node in nodes if node.op == "Cast" and node.attr["SrcT"].type == tf.float32.as_datatype_enum]
    return [tf.TensorShape(node.attr["_output_shapes"].list.shape[0]).as_list() for node in casts]


def test_an_attack_casts_the_weights_before_its_loop():
    network, attack = deep("mixed_bfloat16"), km.PGD(km.Linf(0.1), 3)
    kernels = [weight.shape.as_list() for weight in network.trainable_weights if weight.name == "kernel"]
    folding.disable()
    assert any(shape in kernels for shape in casts_in_loops(network, attack))
    folding.enable()
    shapes = casts_in_loops(network, attack)
    assert shapes and not any(shape in kernels for shape in shapes)  # the images are cast


def test_in_replicas(two_replicas):
    with two_replicas.scope():
        network = shake(functional(conv_bn))

    @tf.function
    def everywhere():
        return two_replicas.run(lambda: folding.view(network)(tf.constant(X)))

    for logits in two_replicas.experimental_local_results(everywhere()):
        assert relative(logits, network(X, training=False)) < ROUNDING


def test_compiled_by_xla():
    network = shake(functional(conv_bn))
    view = tf.function(lambda images: folding.view(network)(images), jit_compile=True)
    assert_same(view, in_evaluation(network), X)


# --- training ---


def trained(function, network, images):
    """Returns logits, gradients of the weights, and the variables after a call, which may update the statistics."""
    before = [variable.numpy() for variable in network.variables]  # including the seeds of Dropout
    with tf.GradientTape() as tape:
        logits = tf.cast(function(tf.constant(images)), "float32")
        loss = tf.reduce_sum(tf.nn.log_softmax(logits)[:, 0])
    gradients = tape.gradient(loss, network.trainable_variables)
    after = [variable.numpy() for variable in network.variables]
    for variable, value in zip(network.variables, before, strict=True):
        variable.assign(value)
    flat = np.concatenate([np.ravel(gradient) for gradient in gradients])
    return logits, flat, after


def assert_trains_the_same(view, network, training=True):
    logits, gradients, after = trained(lambda images: network(images, training=training), network, X)
    of_view, gradients_of_view, after_view = trained(view, network, X)
    assert relative(of_view, logits) < ROUNDING
    assert relative(gradients_of_view, gradients) < ROUNDING
    for variable, got, wanted in zip(network.variables, after_view, after, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=ROUNDING, atol=ROUNDING, err_msg=variable.path)


def nested_frozen_dropping():
    """A network with frozen, trainable and nested normalisations, one with an epsilon too small to be fused."""
    inner = keras.Sequential(
        [keras.Input((4, 4, 4)), layers.Conv2D(4, 3), layers.BatchNormalization(epsilon=1e-5), layers.ReLU()]
    )
    images = keras.Input(SHAPE)
    x = conv_bn(images, norm=layers.BatchNormalization(name="frozen"))
    x = layers.Dropout(0.5)(layers.BatchNormalization(epsilon=1e-6)(inner(layers.ReLU()(x))))
    network = keras.Model(images, layers.Dense(3)(layers.Flatten()(x)))
    network.get_layer("frozen").trainable = False
    return network


def inner_frozen():
    inner = keras.Sequential([keras.Input((4, 4, 4)), layers.BatchNormalization()])
    inner.trainable = False
    return functional(lambda images: layers.BatchNormalization()(inner(layers.Conv2D(4, 3)(images))))


TRAINED = {
    "plain": (lambda: functional(conv_bn), 1),
    "nested, frozen, dropping": (nested_frozen_dropping, 2),
    "frozen inside": (inner_frozen, 2),
    "deep": (lambda: deep("float32"), 3),
    "silu": (lambda: km.zoo.wide_resnet(10, 1, input_shape=SHAPE, activation="silu", padding="same"), 7),
    "transformer": (lambda: km.zoo.vit_tiny(3, SHAPE, patch_size=3, depth=1, width=6), 0),
    "subclassed": (Subclassed, 0),
    "own call": (UNFOLDED["own call"], 0),
    "masked": (UNFOLDED["masked by an argument"], 0),
    "another axis": (UNFOLDED["another axis"], 0),
    "one normalisation of two": (UNFOLDED["one normalisation of two"], 0),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_view_is_the_network(name):
    build, fused = TRAINED[name]
    network = build()
    network(X)
    shake(network)
    view = folding.training_view(network)
    assert_trains_the_same(view, network)
    assert count(view, SHAPE, ["FusedBatchNormV3"]) == fused


SAYING = {
    "normalisation": lambda: layers.BatchNormalization(),
    "our normalisation": lambda: km.layers.BatchNormalization(epsilon=1e-5),
    "dropout": lambda: layers.Dropout(0.5),
    "nested": lambda: keras.Sequential([keras.Input((4, 4, 4)), layers.BatchNormalization(), layers.Dropout(0.5)]),
}


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fixed", [None, True, False])
@pytest.mark.parametrize("name", SAYING)
def test_a_call_in_the_graph_may_say_training(name, fixed, enabled):
    """Only an explicit `training=False` makes a layer run in evaluation mode."""
    said = {} if fixed is None else {"training": fixed}
    layer = SAYING[name]()
    network = shake(functional(lambda images: layer(layers.Conv2D(4, 3)(images), **said)))
    folding.enable() if enabled else folding.disable()
    assert_same(folding.view(network), in_evaluation(network), X)
    # The default of Dropout, `training=False`, is recorded in every graph.
    assert_trains_the_same(folding.training_view(network), network, fixed is not False or name == "dropout")


class Noisy(layers.Layer):
    """Calls an inner layer with `training=True`, as randomised defences do."""

    def __init__(self):
        super().__init__()
        self.dropout = layers.Dropout(0.1)

    def call(self, images):
        return self.dropout(images, training=True)


def test_what_a_layer_says_inside_goes_no_further():
    network = shake(functional(lambda images: layers.BatchNormalization()(Noisy()(images))))
    before = [variable.numpy() for variable in network.variables if "moving" in variable.name]
    folding.view(network)(tf.constant(X))
    after = [variable.numpy() for variable in network.variables if "moving" in variable.name]
    assert len(after) == 2
    np.testing.assert_array_equal(after, before)


def test_training_view_drops():
    network = shake(functional(layers.Dropout(0.5)))
    view = folding.training_view(network)
    assert relative(view(tf.constant(X)), view(tf.constant(X))) > 0.1


@pytest.mark.parametrize("policy", HALF_ROUNDING)
def test_training_view_in_half_precision_loses_no_more_than_the_network(policy):
    exact, network = shake(deep("float32")), deep(policy)
    network.set_weights(exact.get_weights())
    images = images_and_labels(32, SHAPE)[0]
    expected = trained(lambda images: exact(images, training=True), exact, images)
    plain = trained(lambda images: network(images, training=True), network, images)
    seen = trained(folding.training_view(network), network, images)
    for got, ours, wanted in zip(seen[:2], plain[:2], expected[:2], strict=True):
        assert relative(got, wanted) < 1.5 * relative(ours, wanted) + HALF_ROUNDING[policy]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_activity_regularisation_counts(policy):
    attack = km.PGD(km.L2(0.5), 1, step_size=0.05)

    def loss(of_conv=0.0, of_norm=0.0):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        conv = layers.Conv2D(4, 3, activity_regularizer=keras.regularizers.L2(of_conv) if of_conv else None)
        norm = layers.BatchNormalization(activity_regularizer=keras.regularizers.L2(of_norm) if of_norm else None)
        model = km.MART(functional(lambda images: conv_bn(images, conv, norm)), attack, seed=0)
        model.compile("sgd", run_eagerly=True)
        return model.train_on_batch(X, Y)[0]

    tolerance = 1e-5 if policy == "float32" else 0.02
    plain, both = loss(), loss(0.1, 0.1)
    of_conv, of_norm = loss(of_conv=0.1) - plain, loss(of_norm=0.1) - plain
    assert min(of_conv, of_norm) > 5 * tolerance * both
    np.testing.assert_allclose(both - plain, of_conv + of_norm, rtol=tolerance)
    folding.disable()
    np.testing.assert_allclose(both, loss(0.1, 0.1), rtol=tolerance)


def test_training_is_the_same():
    def ten_steps():
        keras.utils.set_random_seed(0)
        # L2, whose step is smooth in the gradient; Linf takes the sign, which rounding can flip, so that two runs
        # diverge. The remaining rounding errors grow in training, by a factor of about ten every few steps.
        model = km.MART(conv_network(SHAPE), km.PGD(km.L2(0.5), 3, start="zero"), seed=0)
        model.compile(keras.optimizers.SGD(0.1))
        losses = [model.train_on_batch(X, Y)[0] for _ in range(10)]
        return losses, np.concatenate([np.ravel(weight) for weight in model.get_weights()])

    losses, weights = ten_steps()
    folding.disable()
    losses_without, weights_without = ten_steps()
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, losses_without, rtol=1e-4)
    assert relative(weights, weights_without) < 1e-4
