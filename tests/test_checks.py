"""Unusual forms of data and networks: those that work, and the errors for the others."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import images_and_labels, linear_network
from keras import layers

import keras_mart as km
from keras_mart import checks

X, Y = images_and_labels(12)
ATTACK = km.PGD(km.Linf(0.1), 1)


def build(kind=km.AT, network=None, **arguments):
    keras.utils.set_random_seed(0)
    network = network or linear_network(np.random.default_rng(0).normal(size=(36, 3)), np.zeros(3), X.shape[1:])
    model = kind(network, *([] if kind is km.Standard else [ATTACK]), seed=0)
    model.compile(keras.optimizers.SGD(0.1), **arguments)
    return model


def batches(x=X, y=Y, size=4):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def stream(x=X, y=Y, size=4, known=False):
    """Returns a dataset that can be read only once."""
    parts = iter([(x[k : k + size], y[k : k + size]) for k in range(0, len(x), size)])
    spec = (tf.TensorSpec((None, *x.shape[1:]), x.dtype), tf.TensorSpec((None,), y.dtype))
    data = tf.data.Dataset.from_generator(lambda: parts, output_signature=spec)
    return data.apply(tf.data.experimental.assert_cardinality(len(x) // size)) if known else data


# --- every example once ---


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("metrics", [None, ["accuracy"]], ids=str)
def test_data_that_can_be_read_once_are_trained_on_whole(metrics, replicas, two_replicas):
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        model = build(km.Standard, metrics=metrics)
    model.fit(stream(), verbose=0)
    assert model.step.numpy() == 3


def test_data_that_can_be_read_once_are_evaluated_whole():
    model = build(km.Standard)
    for known in (False, True):
        wanted = model.evaluate(X, Y, batch_size=4, verbose=0, return_dict=True)
        assert model.evaluate(stream(known=known), verbose=0, return_dict=True) == pytest.approx(wanted, rel=1e-5)
        history = model.fit(X, Y, validation_data=stream(known=known), verbose=0).history
        whole = model.evaluate(X, Y, batch_size=4, verbose=0, return_dict=True)
        assert history["val_natural_accuracy"][0] == pytest.approx(whole["natural_accuracy"], rel=1e-5)


def test_a_network_that_is_not_built_is_built_by_what_a_dataset_says():
    network = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    build(km.Standard, network).fit(stream(), verbose=0)
    assert network.layers[-1].kernel.shape == (36, 3)
    nothing = tf.data.Dataset.from_generator(lambda: iter([(X, Y)]), output_types=("float32", "int32"))
    with pytest.raises(ValueError, match="The data must declare the number of axes"):
        build(network=keras.Sequential([layers.Flatten(), layers.Dense(3)])).fit(nothing, verbose=0)


# --- every batch is checked ---


def spoilt(what):
    x, y = X.copy(), Y.copy()
    if what == "images of 0 to 255":
        x[9] *= 255
    elif what == "NaN":
        x[9, 0] = np.nan
    else:
        y[9] = 3
    return x, y


FOUND = {
    "images of 0 to 255": r"Images must lie in \[0, 1\] .*Received at {}: values from 0.* to 2\d\d.*255",
    "NaN": r"not contain NaN\. Received at {}: values from nan",
    "labels": r"Labels must lie in \[0, 3\)\. Received at {}: labels from \d to 3\.",
}


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_later_batch_that_is_wrong_ends_training_before_its_step(on_nan):
    model = build(on_nan=on_nan)
    before = model.get_weights()
    model.fit(batches(X[:8], Y[:8]), verbose=0)  # the two steps that are good
    after_two_steps = model.network.get_weights()
    for what, message in FOUND.items():
        model.set_weights(before)
        with pytest.raises(ValueError, match=message.format("step 3")):
            model.fit(batches(*spoilt(what)), verbose=0)
        assert int(model.step) == 2
        for one, other in zip(model.network.get_weights(), after_two_steps, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("data", ["a generator", "a sequence"])
def test_it_does_so_whatever_the_data_come_in(data):
    x, y = spoilt(what := "labels")

    class Sequence(keras.utils.PyDataset):
        num_batches = 3

        def __getitem__(self, number):
            return x[4 * number :][:4], y[4 * number :][:4]

    given = {"a generator": ((*each,) for each in batches(x, y)), "a sequence": Sequence()}
    with pytest.raises(ValueError, match=FOUND[what].format("step 3")):
        build(km.Standard).fit(given[data], shuffle=False, verbose=0)


def test_a_batch_that_is_wrong_ends_an_evaluation():
    model = build()
    for what, message in FOUND.items():
        with pytest.raises(ValueError, match=message.format("evaluation")):
            model.evaluate(batches(*spoilt(what)), verbose=0)


def test_validation_data_are_looked_at_before_training():
    model = build()
    with pytest.raises(ValueError, match=r"to 255\. Divide"):
        model.fit(X, Y, epochs=2, validation_data=batches(255 * X / X[:4].max(), Y), verbose=0)
    assert int(model.step) == 0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_index_that_is_wrong_ends_training(jit_compile):
    network = linear_network(np.eye(36, 3), np.zeros(3), X.shape[1:])
    model = km.MMA(network, km.PGD(km.Linf(0.1), 1, start="zero"), num_examples=12, max_epsilon=0.3, seed=0)
    model.compile("sgd", jit_compile=jit_compile)
    data = tf.data.Dataset.from_tensor_slices(((X, np.arange(12) + 4), Y)).batch(4)
    with pytest.raises(ValueError, match=r"Indices must lie in \[0, num_examples=12\)\. Received at step 3"):
        model.fit(data, verbose=0)
    assert int(model.step) == 2


# --- evaluation ---


def test_all_data_are_looked_through_before_the_first_attack():
    attacked = []

    def attack(network, images, labels, seed):
        attacked.append(len(images))
        return images

    model, (x, y) = build(), spoilt("images of 0 to 255")
    for data in ((x, y), batches(x, y)):
        with pytest.raises(ValueError, match="Images must lie"):
            km.evaluate(model, data, {"a": attack}, batch_size=4, verbose=0)
    assert not attacked
    # The invalid examples lie beyond the limit.
    assert km.evaluate(model, (x, y), {"a": attack}, limit=8, verbose=0).examples == 8


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, number):
        return X[:4], Y[:4]


@pytest.mark.parametrize("data", [batches().repeat(), stream().repeat(), Endless()], ids=["set", "stream", "sequence"])
def test_endless_data_are_refused_before_training(data):
    model = build()
    with pytest.raises(ValueError, match="Endless data"):
        model.fit(X, Y, verbose=0, callbacks=[km.RobustAccuracy(data, {"p": ATTACK}, verbose=0)])
    assert int(model.step) == 0


def test_arrays_of_a_callback_are_looked_through_before_training():
    model = build()
    with pytest.raises(ValueError, match="Images must lie"):
        callback = km.RobustAccuracy(spoilt("images of 0 to 255"), {"p": ATTACK}, verbose=0)
        model.fit(X, Y, verbose=0, callbacks=[callback])
    assert int(model.step) == 0


def test_a_sequence_is_evaluated_whole():
    class Sequence(keras.utils.PyDataset):
        num_batches = 3

        def __getitem__(self, number):  # it never raises at its end
            return X[4 * (number % 3) :][:4], Y[4 * (number % 3) :][:4]

    assert km.evaluate(build(), Sequence(), {}, verbose=0).examples == 12


# --- forms ---


def test_dictionaries_of_tensorflow_datasets_are_taken_everywhere():
    usual = build(km.Standard)
    expected = usual.fit(batches(), validation_data=batches(), epochs=2, verbose=0).history
    values = usual.evaluate(batches(), verbose=0)
    expected_table = km.evaluate(usual, batches(), {"p": ATTACK}, verbose=0)
    for more in ({}, {"id": np.arange(12)}):
        data = tf.data.Dataset.from_tensor_slices({"image": X, "label": Y, **more}).batch(4)
        model = build(km.Standard)
        found = model.fit(data, validation_data=data, epochs=2, verbose=0).history
        assert found == {name: pytest.approx(each, rel=1e-6) for name, each in expected.items()}
        assert model.evaluate(data, verbose=0) == pytest.approx(values, rel=1e-6)
        table = km.evaluate(model, data, {"p": ATTACK}, verbose=0)
        assert table.accuracy == expected_table.accuracy and table.examples == 12
        assert km.evaluate(model, list(data)[:2], {}, verbose=0).examples == 8


IMAGE, META = keras.Input(X.shape[1:], name="image"), keras.Input((3,), name="meta")
FEATURES = layers.Flatten()(IMAGE)
BOTH = layers.Dense(3)(layers.Concatenate()([FEATURES, META]))


class Pair(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, images):
        features = self.flatten(images)
        return {"logits": self.dense(features), "features": features}


NETWORKS = {
    "two outputs": (lambda: keras.Model(IMAGE, [layers.Dense(3)(FEATURES), FEATURES]), "return one tensor of logits"),
    "a dictionary": (lambda: keras.Model(IMAGE, {"logits": layers.Dense(3)(FEATURES)}), "return one .*{'logits'}"),
    "a dictionary of a subclass": (Pair, r"return one .*{'logits', 'features'}"),
    "two inputs": (lambda: keras.Model([IMAGE, META], BOTH), r"take one tensor of images.*\[image, meta\]"),
    "a dictionary of inputs": (lambda: keras.Model({"image": IMAGE, "meta": META}, BOTH), "take one .*'image', 'meta'"),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_networks_of_another_structure_are_told_what_they_must_be(case):
    make, message = NETWORKS[case]
    for use in (
        lambda network: ATTACK(network, X, Y),
        lambda network: km.evaluate(network, (X, Y), {"p": ATTACK}, verbose=0),
        lambda network: build(network=network).fit(X, Y, verbose=0),
    ):
        with pytest.raises(ValueError, match=rf"`network` must {message}"):
            use(make())


PAIRS = tf.data.Dataset.from_tensor_slices(({"image": X, "meta": np.zeros((12, 3))}, Y))
FORMS = {
    "unbatched": (tf.data.Dataset.from_tensor_slices((X, Y)), r"must be batches.*`dataset\.batch\(128\)`"),
    "unbatched dictionaries": (tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}), "must be batches"),
    "other names": (tf.data.Dataset.from_tensor_slices({"x": X, "y": Y}).batch(4), "'image' and 'label'.*{'x', 'y'}"),
    "a dictionary of inputs": (PAIRS.batch(4), "Images must be one tensor.*{'image', 'meta'}"),
    "no labels": (tf.data.Dataset.from_tensor_slices(X).batch(4), "no labels"),
}


@pytest.mark.parametrize("case", FORMS)
def test_data_of_another_structure_are_told_what_they_must_be(case):
    data, message = FORMS[case]
    model = build()
    for use in (
        lambda: km.evaluate(model, data, {"p": ATTACK}, verbose=0),
        lambda: model.fit(data, verbose=0),
        lambda: model.evaluate(data, verbose=0),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    assert int(model.step) == 0


@pytest.mark.parametrize("x", [[X, np.zeros((12, 3))], {"image": X}], ids=["list", "dictionary"])
def test_images_in_a_structure_are_refused_by_attacks(x):
    with pytest.raises(ValueError, match="Images must be one tensor"):
        ATTACK(build(), x, Y)


def test_channels_first_is_refused_where_pixels_have_their_places(tmp_path):
    path = tmp_path / "first.npz"
    first = np.zeros((20, 3, 8, 9), "uint8")
    labels = np.arange(20) % 2
    np.savez(path, x_train=first, y_train=labels, x_test=first, y_test=labels)
    channels = r"must be \[batch, height, width, channels\]. Received: shape \(20, 3, 8, 9\)"
    with pytest.raises(ValueError, match=channels):
        km.datasets.load(f"npz:{path}")
    with pytest.raises(ValueError, match=channels):
        km.datasets.mix(batches(), (first, labels))


def test_labels_whose_width_a_dataset_does_not_say():
    spec = (tf.TensorSpec((None, 6, 6, 1)), tf.TensorSpec((None, None), tf.int64))
    data = tf.data.Dataset.from_generator(lambda: iter([(X, Y[:, None])]), output_signature=spec)
    assert np.isfinite(build(km.Standard).fit(data, verbose=0).history["loss"]).all()


def test_two_labels_are_refused():
    data = tf.data.Dataset.from_tensor_slices((X, (Y, Y))).batch(4)
    with pytest.raises(ValueError, match="Labels must be one tensor"):
        build().fit(data, verbose=0)


def test_dictionaries_are_predicted():
    data = tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}).batch(5)
    model = build()
    np.testing.assert_allclose(model.predict(data, verbose=0), model.predict(X, verbose=0), rtol=1e-5)


class Named(keras.Model):
    """A model whose attributes have names that Keras's functional models use."""

    def __init__(self):
        super().__init__()
        self.flatten, self.outputs = layers.Flatten(), layers.Dense(3)
        self.inputs = 5

    def call(self, images):
        return self.outputs(self.flatten(images))


class Numbered(layers.Layer):
    layers = 2

    def call(self, images):
        return images * self.layers


def test_attributes_of_a_users_own_may_have_any_name():
    numbered = keras.Sequential([keras.Input(X.shape[1:]), Numbered(), layers.Flatten(), layers.Dense(3)])
    for network in (Named(), numbered):
        model = build(network=network, run_eagerly=True)
        assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


def test_an_attack_needs_no_more_than_it_is_asked_for():
    class Still:
        threat = km.Linf(0.1)

        def maximise(self, objective, x, epsilon=None, seed=None):
            return x

        def perturb(self, logits, images, labels, seed):
            return images

    model = km.AT(linear_network(np.eye(36, 3), np.zeros(3), X.shape[1:]), Still(), seed=0)
    model.compile("sgd", run_eagerly=True)
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        *(((2, 3, 32, 32), True), ((2, 1, 28, 28), True), ((2, 3, 40, 60), True), ((2, 3, None, None), True)),
        *(
            ((2, 32, 32, 3), False),
            ((2, 1, 32, 9), False),
            ((2, 4, 4, 4), False),
            ((2, 3, 4, 8), False),
            ((2, 3), False),
        ),
    ],
)
def test_which_shapes_have_their_channels_first(shape, first):
    assert checks.is_channels_first(shape) == first


# --- nothing to train ---


@pytest.mark.parametrize("frozen", ["all layers", "an average"])
@pytest.mark.parametrize("kind", [km.Standard, km.MART])
def test_nothing_to_train_is_said_and_trains_nothing(kind, frozen):
    first = km.AT(linear_network(np.eye(36, 3), np.zeros(3), X.shape[1:]), ATTACK, weight_average=0.9)
    network = first.averaged_network if frozen == "an average" else first.network
    network.trainable = False
    before = network.get_weights()
    model = build(kind, network, run_eagerly=kind is km.MART)
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        history = model.fit(X, Y, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_an_h5_file_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(ValueError, match=r"`filepath` must end in \.keras"):
        build().save(tmp_path / "run.h5")
    with pytest.raises(ValueError, match=r"`filepath` must end in \.keras"):
        build().fit(X, Y, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "run.h5"))])
    assert not list(tmp_path.iterdir())


# --- the end of an iterator ---


@pytest.mark.parametrize("chosen", [None, True, False])
def test_the_end_of_an_iterator_does_not_wait_for_the_autotuner_of_data(chosen, monkeypatch):
    """The thread of tf.data's autotuner sleeps for up to a minute, so it is off unless enabled explicitly."""
    data, options, seen = batches(), tf.data.Options(), []
    if chosen is not None:
        options.autotune.enabled = chosen
        data = data.with_options(options)

    def look(model, x=None, y=None, validation_data=None, callbacks=None):
        seen.extend(each.options().autotune.enabled for each in (x, validation_data))

    model = build()
    monkeypatch.setattr(keras.Model, "fit", look)
    model.fit(data, validation_data=data)
    assert seen == [bool(chosen)] * 2
    assert km.datasets.load("digits", "train").options().autotune.enabled is False
