"""Training on from a network that was trained before: what is frozen or called in evaluation mode stays as it is."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from agreement import WITH_TEACHER, teacher
from conftest import images_and_labels
from keras import layers, ops

import keras_mart as km
from keras_mart import folding
from keras_mart.methods import METHODS, averaging

GUIDE = pathlib.Path(__file__).parents[1] / "docs" / "fine_tuning.md"
SHAPE, CLASSES = (6, 6, 1), 3
X, Y = images_and_labels(8)
ATTACK = km.PGD(km.Linf(0.1), steps=1, step_size=0.05)


@pytest.fixture(autouse=True)
def as_by_default():
    yield
    folding.enable()
    keras.config.set_dtype_policy("float32")


def base_network():
    """A network without its head: both kinds of normalisation, and a convolution between what tests freeze."""
    images = keras.Input(SHAPE)
    x = layers.BatchNormalization(epsilon=1e-5, name="theirs")(layers.Conv2D(3, 3, name="kernel")(images))
    x = layers.Dropout(0.2)(layers.Conv2D(3, 3, name="free")(layers.ReLU()(x)))
    x = layers.Flatten()(km.layers.BatchNormalization(epsilon=1e-5, name="ours")(x))
    return moved(keras.Model(images, x, name="base"))


def moved(network):
    """Gives each weight a value that no initialiser gives."""
    generator = np.random.default_rng(1)
    network.set_weights([w + generator.uniform(0.1, 0.3, w.shape) for w in network.get_weights()])
    return network


def with_head(base, **call):
    images = keras.Input(SHAPE)
    return keras.Model(images, layers.Dense(CLASSES, name="head")(base(images, **call)))


def wrapped(network, method="at", **options):
    arguments = {"mma": {"num_examples": len(X), "max_epsilon": 0.2}}.get(method, {})
    arguments |= {"attack": ATTACK} if METHODS[method].has_adversary else {}
    arguments |= {"teacher": teacher()} if method in WITH_TEACHER else {}
    return METHODS[method](network, seed=0, **arguments, **options)


def compiled(model, **options):
    model.compile(km.optimizers.SGD(0.02, momentum=0.9, weight_decay=1e-2), **options)
    return model


def fit(model, **options):
    inputs = (X, np.arange(len(X))) if model.needs_index else X
    return model.fit(inputs, Y, **{"batch_size": 4, "verbose": 0} | options)


def weights(layer):
    return {weight.path: np.array(weight) for weight in layer.weights}


def assert_kept(before, layer):
    for path, value in weights(layer).items():
        assert value.tobytes() == before[path].tobytes(), path


def assert_moved(before, layer):
    for path, value in weights(layer).items():
        assert (value != before[path]).any(), path


# --- frozen ---

KINDS = ("kernel", "theirs", "ours")


def freeze(network, names=("base",)):
    """Freezes the base or layers of it; returns the names of the layers that are frozen then."""
    base = network.get_layer("base")
    for name in names:
        (base if name == "base" else base.get_layer(name)).trainable = False
    return [layer.name for layer in base.layers if not layer.trainable]


def assert_trains_all_but(names, model, **options):
    """Of the network's layers those of these names stay, bit by bit, and all others move."""
    before = weights(model.network)
    fit(model, **options)
    for layer in [*model.network.get_layer("base").layers, model.network.get_layer("head")]:
        (assert_kept if layer.name in names else assert_moved)(before, layer)


@pytest.mark.parametrize("method", ["standard", "at", "mart", "mma", "hat", "gradalign"])
def test_what_is_frozen_stays_under_every_method(method):
    network = with_head(base_network())
    names = freeze(network, KINDS)
    model = wrapped(network, method, weight_perturbation=km.AWP(0.05), weight_average=0.5)
    assert_trains_all_but(names, compiled(model, run_eagerly=method != "mart"), batch_size=len(X))
    of_average = model.averaged_network.get_layer("base")
    for name in names:  # they were never anything else
        assert_kept(weights(network), of_average.get_layer(name))


@pytest.mark.parametrize(
    "policy, folded", [("float32", False), ("mixed_bfloat16", False), ("mixed_bfloat16", True), ("mixed_float16", True)]
)
def test_what_is_frozen_stays_in_any_precision(policy, folded):
    keras.config.set_dtype_policy(policy)
    folding.enable() if folded else folding.disable()
    network = with_head(base_network())
    names = freeze(network)
    # In float16 the first steps overflow, until the loss's scale fits.
    model = compiled(wrapped(network, "standard", weight_average=0.5))
    assert_trains_all_but(names, model, epochs=5 if policy == "mixed_float16" else 1)


def test_what_is_frozen_stays_on_two_replicas(two_replicas):
    with two_replicas.scope():
        network = with_head(base_network())
        names = freeze(network, KINDS)
        model = compiled(wrapped(network, "standard", weight_average=0.5))
    before = weights(network)
    assert_trains_all_but(names, model)
    for variable in [each for name in names for each in network.get_layer("base").get_layer(name).weights]:
        for held in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_array_equal(held, before[variable.path])


# --- `trainable` changes ---


def test_a_base_is_frozen_and_freed_between_two_fits():
    model = compiled(wrapped(with_head(base_network()), "standard", weight_average=0.5), run_eagerly=True)
    fit(model)
    names = freeze(model.network)
    compiled(model, run_eagerly=True)
    assert len(model.optimizer.variables) == 2 + 2  # iterations, learning rate; the head's velocities
    base, mean = (each.get_layer("base") for each in (model.network, model.averaged_network))
    apart = np.abs(mean.get_layer("free").kernel - base.get_layer("free").kernel).max()
    assert_trains_all_but(names, model)
    assert 0 < np.abs(mean.get_layer("free").kernel - base.get_layer("free").kernel).max() < apart
    base.trainable = True
    compiled(model, run_eagerly=True)
    assert_trains_all_but([], model)


def test_a_change_without_compile_takes_effect_or_is_refused():
    model = compiled(wrapped(with_head(base_network()), "standard"))
    fit(model)
    names = freeze(model.network)
    assert_trains_all_but(names, model)
    model.network.get_layer("base").trainable = True  # the optimizer has known it
    assert_trains_all_but([], model)
    freeze(model.network)
    compiled(model)
    fit(model)
    model.network.get_layer("base").trainable = True
    with pytest.raises(ValueError, match=r"Unknown variable.*new optimizer"):
        fit(model)


def test_the_average_is_never_trainable():
    network = with_head(base_network())
    network.trainable = False
    for layer in network.layers:
        layer.trainable = True  # and the network says that it is frozen
    model = compiled(wrapped(network, "standard", weight_average=0.5))
    assert [id(each) for each in model.trainable_variables] == [
        id(each) for each in network.variables if each.trainable
    ]
    model.trainable = False
    model.trainable = True
    compiled(model)
    assert [id(each) for each in model.trainable_variables] == [
        id(each) for each in network.variables if each.trainable
    ]


class Direct(layers.Layer):
    """Makes its weights without `add_weight`, and first the one that never trains."""

    def build(self, shape):
        self.shift = keras.Variable("zeros", shape=(shape[-1],), trainable=False, name="shift")
        self.scale = keras.Variable("ones", shape=(shape[-1],), name="scale")

    def call(self, inputs):
        return inputs * self.scale + self.shift


def unbuilt(trainable=True):
    return keras.Sequential(
        [
            layers.Conv2D(3, 3, trainable=trainable, name="kernel"),
            layers.BatchNormalization(trainable=trainable, name="theirs"),
            km.layers.BatchNormalization(name="ours", trainable=trainable),
            Direct(name="direct", trainable=trainable),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


def frozen_one_by_one(network):
    for layer in network.layers[:4]:
        layer.trainable = False


@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize("when", ["made so", "before the copy", "after the copy"])
def test_a_network_and_its_average_have_their_weights_in_one_order(when, is_built):
    """Whenever layers are frozen, and built."""
    network = unbuilt(trainable=when != "made so")
    if is_built:
        network.build((None, *SHAPE))
    if when == "before the copy":
        frozen_one_by_one(network)
    model = wrapped(network, weight_average=0.5)
    if when == "after the copy":
        frozen_one_by_one(network)
    model(X)
    averaging.update(network, moved(model.averaged_network), 0.5, 0)  # the first is a copy
    for layer, copied in zip(network.layers, model.averaged_network.layers, strict=True):
        for name, weight in vars(layer).items():
            if isinstance(weight, keras.Variable):
                np.testing.assert_allclose(vars(copied)[name], weight, rtol=1e-5, atol=1e-6)


def test_a_saved_model_stays_frozen(tmp_path):
    network = with_head(base_network(), training=False)  # no Dropout then, whose seeds are not saved
    names = freeze(network, KINDS)
    model = compiled(wrapped(network, "standard", weight_average=0.5), run_eagerly=True)
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    before = weights(loaded.network)
    assert fit(loaded).history == fit(model).history
    for name in names:
        assert_kept(before, loaded.network.get_layer("base").get_layer(name))
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)


# --- called in evaluation mode ---


def parts():
    return base_network(), layers.BatchNormalization(epsilon=1e-5), layers.Dense(CLASSES)


def functional(body):
    images = keras.Input(SHAPE)
    return keras.Model(images, body(images))


def once():
    base, norm, head = parts()
    return (
        base,
        functional(lambda x: head(norm(base(x, training=False)))),
        lambda x: head(norm(base(x, training=False), training=True)),
    )


def frozen():
    base, *rest = once()
    base.trainable = False
    return base, *rest


def nested():
    base, norm, head = parts()
    middle = functional(lambda x: norm(base(x, training=False)))
    return base, functional(lambda x: head(middle(x))), lambda x: head(norm(base(x, training=False), training=True))


def nested_twice():
    base, norm, head = parts()
    middle = functional(lambda x: base(x, training=False))
    network = functional(lambda x: head(layers.Add()([middle(x), norm(middle(1 - x))])))
    return base, network, lambda x: head(base(x, training=False) + norm(base(1 - x, training=False), training=True))


def several_times():
    base, norm, head = parts()
    network = functional(lambda x: head(layers.Add()([norm(base(x, training=False)), base(1 - x, training=False)])))
    return base, network, lambda x: head(norm(base(x, training=False), training=True) + base(1 - x, training=False))


def both_ways():
    """The statistics are those of the call in training mode."""
    base, _, head = parts()
    network = functional(lambda x: head(layers.Add()([base(x, training=False), base(1 - x)])))
    return None, network, lambda x: head(base(x, training=False) + base(1 - x, training=True))


def one_layer():
    base, norm, head = parts()
    network = functional(lambda x: head(norm(base(x), training=False)))
    return norm, network, lambda x: head(norm(base(x, training=True), training=False))


def in_a_sequential():
    base, norm, head = parts()
    network = keras.Sequential([keras.Input(SHAPE), functional(lambda x: base(x, training=False)), norm, head])
    return base, network, lambda x: head(norm(base(x, training=False), training=True))


def with_masks():
    base, norm, head = parts()
    middle = functional(lambda x: norm(base(x, training=False)))

    def body(x):
        masked = layers.Masking()(layers.Reshape((6, 6))(x))
        return head(layers.Concatenate()([layers.GlobalAveragePooling1D()(masked), middle(x)]))

    def expected(x):
        middle = norm(base(x, training=False), training=True)
        return head(ops.concatenate([ops.mean(x[..., 0], axis=1), middle], axis=-1))

    return base, functional(body), expected


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.base, self.norm, self.head = parts()

    def call(self, images, training=None):
        return self.head(self.norm(self.base(images, training=False), training=training))


def subclassed():
    network = Subclassed()
    network(X)
    return network.base, network, lambda x: network.head(network.norm(network.base(x, training=False), training=True))


EVALUATED = [
    once, frozen, nested, nested_twice, several_times, both_ways, one_layer, in_a_sequential, with_masks, subclassed,
]  # fmt: skip


def outcome(network, function):
    """Outputs, gradients and weights after a call in training mode, which are then what they were before."""
    before = [variable.numpy() for variable in network.variables]  # Dropout's seeds too
    with tf.GradientTape() as tape:
        outputs = function(tf.constant(X))
        value = ops.sum(ops.log_softmax(outputs)[:, 0])
    gradients = tape.gradient(value, [each.value for each in network.trainable_variables])
    after = network.get_weights()
    for variable, value in zip(network.variables, before, strict=True):
        variable.assign(value)
    return [outputs, *gradients, *after]


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("case", EVALUATED)
def test_what_the_graph_calls_in_evaluation_mode_is_trained_in_it(case, folded):
    folding.enable() if folded else folding.disable()
    evaluated, network, expected = case()
    before = evaluated and evaluated.get_weights()
    found, wanted = outcome(network, folding.training_view(network)), outcome(network, expected)
    for one, other in zip(found, wanted, strict=True):
        # The gradient of a bias in front of a BatchNormalization is 0 but for what rounding leaves of it.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert len(found) == 1 + len(network.trainable_variables) + len(network.weights)
    folding.training_view(network)(tf.constant(X))
    for one, other in zip(evaluated.get_weights() if evaluated else [], before or [], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("folded", [True, False])
def test_a_base_that_is_called_in_evaluation_mode_keeps_its_statistics_and_trains(folded):
    folding.enable() if folded else folding.disable()
    network = with_head(base_network(), training=False)
    model = wrapped(network, "trades", weight_perturbation=km.AWP(0.05), weight_average=0.5)
    before = weights(network)
    fit(compiled(model, run_eagerly=True), batch_size=len(X))
    for path, value in {**weights(network), **weights(model.averaged_network)}.items():
        assert (value == before[path]).all() == ("moving" in path), path


# --- the guide ---


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    """Its Python as it stands there, but for one eager epoch of two small batches, by attacks of one step."""
    monkeypatch.chdir(tmp_path)
    load = km.datasets.load
    monkeypatch.setattr(km.datasets, "load", lambda *args, **_: load(*args, batch_size=8).take(2))
    names = {}
    for example in re.findall(r"```python\n(.+?)```", GUIDE.read_text(), flags=re.DOTALL):
        example = re.sub(r"compile\((.+)\)\n", r"compile(\1, run_eagerly=True)\n", example)
        exec(compile(re.sub(r"(epochs|steps)=\d+", r"\1=1", example), GUIDE.name, "exec"), names)
    said = capsys.readouterr().out
    assert said.count("pgd20") == 4 and "before" in said and "robust" in said
    assert names["wrappable"].input_shape == (None, 16, 16, 3)
    assert (tmp_path / "robust.keras").exists()
