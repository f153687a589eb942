"""keras_mart.datasets.mix: fractions, weights, labels, order and indices of extra examples, and training on them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from agreement import replace_random_numbers
from conftest import linear_network
from test_methods import build, network, same_weights

import keras_mart as km
from keras_mart import datasets

LABELLED, EXTRA, SHAPE, CLASSES = 12, 10, (6, 6, 1), 3
# Labelled image i has the value i / 255, extra image i has FIRST + i; the label is a function of the value.
FIRST = 100


def flat(first, count):
    """Returns `count` constant uint8 images with the values from `first` on, and their labels."""
    values = np.arange(first, first + count)
    return np.tile(values[:, None, None, None], [1, *SHAPE]).astype("uint8"), values % CLASSES


EXTRA_IMAGES, EXTRA_LABELS = flat(FIRST, EXTRA)


def labelled(batch_size=4, index=False, weights=False):
    images, labels = flat(0, LABELLED)
    images = (images / np.float32(255)).astype("float32")
    parts = ((images, np.arange(LABELLED)) if index else images, labels)
    return tf.data.Dataset.from_tensor_slices((*parts, labels + 2.0) if weights else parts).batch(batch_size)


def mix(data=None, extra=(EXTRA_IMAGES, EXTRA_LABELS), **arguments):
    return datasets.mix(labelled() if data is None else data, extra, **arguments)


def epoch(dataset):
    """Iterates once: for each batch, the integer values of the images, the labels and the weights."""
    return [(np.round(images[:, 0, 0, 0] * 255).astype(int), *rest) for images, *rest in dataset.as_numpy_iterator()]


def extra_order(dataset):
    """Returns the indices of the extra examples of each batch in one iteration."""
    return [[value - FIRST for value in values.tolist() if value >= FIRST] for values, *_ in epoch(dataset)]


# Batches


def test_share_labels_and_weights_of_each_batch():
    mixed = mix(labelled(5), fraction=1 / 3, weight=0.25)
    assert mixed.cardinality() == 3
    batches = epoch(mixed)
    assert [len(values) for values, *_ in batches] == [5 + 2, 5 + 2, 2 + 1]
    assert [values[values < FIRST].tolist() for values, *_ in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    for values, labels, weights in batches:
        np.testing.assert_array_equal(labels, values % CLASSES)
        np.testing.assert_array_equal(weights, np.where(values >= FIRST, np.float32(0.25), 1))
    assert mixed.element_spec[1].dtype == tf.int32 and mixed.element_spec[2].dtype == tf.float32


def test_labelled_examples_keep_their_weights():
    values, labels, weights = epoch(mix(labelled(weights=True), weight=9))[1]
    np.testing.assert_array_equal(weights, np.where(values >= FIRST, 9, labels + 2))


@pytest.mark.parametrize(("fraction", "extra"), [(0.5, 4), (0.75, 12), (0.2, 1)])
def test_every_part_of_a_batch_has_its_share_of_both(fraction, extra):
    values = epoch(mix(fraction=fraction))[0][0]
    halves = [int((half >= FIRST).sum()) for half in np.array_split(values, 2)]
    assert sum(halves) == extra and abs(halves[0] - halves[1]) <= 1


def test_extra_images_alone_are_cropped():
    white = np.full([EXTRA, *SHAPE], 255, "uint8"), EXTRA_LABELS
    whole, cropped, again = (
        [batch[0] for batch in mix(extra=white, augment=augment, epoch=lambda: 3).as_numpy_iterator()]
        for augment in (None, "crop", "crop")
    )
    lost = [one - other for one, other in zip(whole, cropped, strict=True)]
    assert all(((part == 0) | (one == 1)).all() and part.any() for part, one in zip(lost, whole, strict=True))
    np.testing.assert_array_equal(cropped, again)
    assert np.any(lost[0] != lost[1])


def soft(batch_size=4):
    return labelled(batch_size).map(lambda images, labels: (images, tf.one_hot(labels, CLASSES)))


@pytest.mark.parametrize("augment", [None, "mixup"])
def test_extra_labels_are_soft_where_the_others_are(augment):
    for values, labels, weights in epoch(mix(soft(), augment=augment, weight=0.5)):
        assert labels.dtype == np.float32 and labels.shape == (8, CLASSES)
        np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
        own = values < FIRST
        assert own.sum() == 4 and np.all(weights == np.where(own, 1, 0.5))
        np.testing.assert_array_equal(labels[own], np.eye(CLASSES)[values[own] % CLASSES])
        if augment is None:
            np.testing.assert_array_equal(labels[~own], np.eye(CLASSES)[values[~own] % CLASSES])


def test_workers_share_out_examples():
    assert mix().options().experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.DATA


# Order


def test_extra_examples_are_drawn_without_replacement_and_permuted_anew():
    batches = extra_order(mix(labelled(2), fraction=0.8))
    assert [len(batch) for batch in batches] == [8] * 6
    drawn = [index for batch in batches for index in batch]
    passes = [drawn[first : first + EXTRA] for first in range(0, 4 * EXTRA, EXTRA)]
    assert all(sorted(each) == list(range(EXTRA)) for each in passes)
    assert len(set(map(tuple, passes))) == len(passes) and list(range(EXTRA)) not in passes


def test_the_order_is_a_function_of_the_seed_and_the_epoch():
    first, again, other = (mix(seed=seed) for seed in (3, 3, 4))
    orders = [extra_order(first) for _ in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [extra_order(again) for _ in range(3)] == orders
    assert extra_order(mix(seed=3, epoch=lambda: 2)) == orders[2]
    assert extra_order(other) != orders[0]


def test_order_and_crops_are_others_than_those_of_the_labelled_data(tmp_path):
    white, labels = np.full([40, *SHAPE], 255, "uint8"), np.zeros(40, int)
    np.savez(tmp_path / "data.npz", x_train=white, y_train=labels, x_test=white, y_test=labels)
    name, options = f"npz:{tmp_path / 'data.npz'}", {"augment": "crop", "seed": 5}
    data = datasets.load(name, with_index=True, batch_size=36, **options)
    (((images, index), *_),) = datasets.mix(data, datasets.load_extra(name), **options).as_numpy_iterator()
    own = index >= 36
    assert own.sum() == 36
    assert not np.array_equal(index[own] - 36, index[~own])
    assert not np.array_equal(images[own], images[~own])


def test_an_epoch_can_be_begun_in_its_middle():
    options = {"fraction": 0.6, "augment": "crop", "epoch": lambda: 2}
    whole, rest = (mix(labelled(5, index=True), first_batch=first, **options) for first in (0, 2))
    assert whole.cardinality() == 3 and rest.cardinality() == 1
    for expected, got in zip(list(whole.as_numpy_iterator())[2:], rest.as_numpy_iterator(), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, got)


def test_arrays_that_are_mapped_keep_what_was_written_into_them(tmp_path):
    np.save(tmp_path / "extra.npy", EXTRA_IMAGES)
    expected = [batch[0] for batch in epoch(mix(epoch=lambda: 0))]
    for mode in ("r", "r+", "c"):
        images = np.load(tmp_path / "extra.npy", mode)
        if mode == "c":
            images[:] = 0
        for _ in range(2):
            values = [batch[0] for batch in epoch(mix(extra=(images, EXTRA_LABELS), epoch=lambda: 0))]
            for got, wanted in zip(values, expected, strict=True):
                np.testing.assert_array_equal(got, np.where(wanted >= FIRST, 0, wanted) if mode == "c" else wanted)


# Sources of labels


def test_a_network_labels_what_has_no_labels():
    weights = np.random.default_rng(0).normal(size=(36, CLASSES))
    weights -= weights.mean(0)
    labeller = linear_network(weights, [0.0, 0.5, -0.5], SHAPE)
    images = np.random.default_rng(1).integers(0, 256, [600, *SHAPE]).astype("uint8")
    expected = (images.reshape(600, -1) / 255 @ weights + [0.0, 0.5, -0.5]).argmax(1)
    assert len(set(expected)) == CLASSES
    np.testing.assert_array_equal(datasets.pseudo_labels(labeller, images), expected)
    for extra in (images, (images, None), tf.data.Dataset.from_tensor_slices(images).batch(7)):
        (_, index), labels, _ = next(mix(labelled(index=True), extra, network=labeller).as_numpy_iterator())
        np.testing.assert_array_equal(labels[index < 600], expected[index[index < 600]])


def test_a_wrapped_network_labels_as_the_one_that_is_judged():
    model = km.Standard(network(batch_norm=False), weight_average=0.9)
    model.averaged_network.set_weights([-weight for weight in model.network.get_weights()])
    images = np.random.default_rng(0).uniform(size=(40, *SHAPE)).astype("float32")
    expected = model.averaged_network(images, training=False).numpy().argmax(1)
    assert np.any(expected != model.network(images, training=False).numpy().argmax(1))
    np.testing.assert_array_equal(datasets.pseudo_labels(model, images), expected)


def test_labels_of_no_numbers_are_refused():
    labeller = linear_network(np.full([36, CLASSES], np.nan), np.zeros(CLASSES), SHAPE)
    with pytest.raises(ValueError, match=r"finite logits\. Received: NaN"):
        datasets.pseudo_labels(labeller, EXTRA_IMAGES)


def test_extra_data_may_be_a_dataset_put_in_the_order_of_its_index():
    order = np.random.default_rng(0).permutation(EXTRA)
    inputs = EXTRA_IMAGES[order], order
    shuffled = tf.data.Dataset.from_tensor_slices((inputs, EXTRA_LABELS[order])).batch(3)
    plain = tf.data.Dataset.from_tensor_slices((EXTRA_IMAGES, EXTRA_LABELS)).batch(4)
    expected = extra_order(mix())
    assert extra_order(mix(extra=shuffled)) == extra_order(mix(extra=plain)) == expected


@pytest.mark.parametrize(
    ("keys", "known"), [(("image", "label"), True), (("images", "labels"), True), (("image",), False)]
)
def test_published_npz_files_are_read(keys, known, tmp_path):
    np.savez(tmp_path / "extra.npz", **dict(zip(keys, (EXTRA_IMAGES, EXTRA_LABELS[:, None]), strict=False)))
    images, labels = datasets.load_extra(f"npz:{tmp_path / 'extra.npz'}")
    np.testing.assert_array_equal(images, EXTRA_IMAGES)
    assert labels.tolist() == EXTRA_LABELS.tolist() if known else labels is None


def test_a_dataset_by_name_gives_what_is_trained_on():
    split = next(iter(datasets.load("digits", shuffle=False, batch_size=1197)))
    for got, expected in zip(datasets.load_extra("digits"), split, strict=True):
        np.testing.assert_array_equal(got, expected)


# Training


@pytest.mark.parametrize("case", ["standard", "mart", "mma", "dkl"])
def test_every_method_trains_on_it(case):
    model = build(case, network(batch_norm=False), run_eagerly=True)
    history = model.fit(mix(labelled(6, index=case == "mma")), shuffle=False, verbose=0).history
    assert np.isfinite(list(history.values())).all() and int(model.step) == 2


def test_mma_keeps_the_margins_of_extra_examples():
    wrapped = network(batch_norm=False)
    wrapped.layers[-1].kernel.assign(100 * wrapped.layers[-1].kernel)
    model = build("mma", wrapped, run_eagerly=True)
    assert model.num_examples == LABELLED + EXTRA
    # All extra examples are in one batch, with the labels that the network predicts: none is misclassified.
    model.fit(mix(labelled(LABELLED, index=True), EXTRA_IMAGES, network=wrapped), shuffle=False, verbose=0)
    assert np.all(model.margins[:EXTRA] > 0)


def test_a_weight_of_zero_trains_on_the_labelled_data_alone():
    models = [build("standard", network(batch_norm=False), run_eagerly=True) for _ in range(3)]
    for model, weight, labels in zip(models, (0, 0, 1), (0, 1, 1), strict=True):
        model.fit(mix(extra=(EXTRA_IMAGES, np.full(EXTRA, labels)), weight=weight), shuffle=False, verbose=0)
    same_weights(*models[:2])
    with pytest.raises(AssertionError):
        same_weights(*models[1:])


def test_indices_are_those_of_all_examples_each_its_own():
    seen = {}
    for (images, index), *_ in mix(labelled(index=True)).as_numpy_iterator():
        seen.update(zip(index.tolist(), np.round(images[:, 0, 0, 0] * 255).astype(int).tolist(), strict=True))
    expected = {i: FIRST + i for i in range(EXTRA)} | {EXTRA + i: i for i in range(LABELLED)}
    assert seen == expected


def test_two_replicas_do_what_one_device_does(two_replicas, monkeypatch):
    replace_random_numbers(monkeypatch.setattr)

    def run(strategy, **arguments):
        with strategy.scope():
            model = build("mma", network(batch_norm=False), **arguments)
        # Batches of 5 + 2, 5 + 2 and 2 + 1.
        data = mix(labelled(5, index=True), fraction=1 / 3, weight=0.5, epoch=lambda: 0)
        return model, model.fit(data, epochs=2, shuffle=False, verbose=0).history

    one, two = run(tf.distribute.get_strategy(), run_eagerly=True), run(two_replicas)
    assert two[0].step.numpy() == 6
    same_weights(one[0], two[0], tolerance=1e-5)
    for name, values in one[1].items():
        np.testing.assert_allclose(values, two[1][name], atol=1e-5, err_msg=name)


# Bad input


def tiles(count=EXTRA, shape=SHAPE):
    return np.zeros([count, *shape], "uint8")


def batches(*parts):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(2)


ONES = np.ones(EXTRA)
SQUASHING = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Softmax()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 0}, "`fraction` must lie between 0 and 1. Received: fraction=0"),
        ({"fraction": 1}, "`fraction` must lie between 0 and 1. Received: fraction=1"),
        ({"weight": -1}, "`weight` must be finite and not negative. Received: weight=-1"),
        ({"weight": float("inf")}, "`weight` must be finite"),
        ({"augment": "flip"}, "`augment` must be one of crop_flip, crop.*'flip'"),
        ({"data": (tiles(), ONES)}, "`labelled` must be a tf.data.Dataset of batches.*Received: tuple"),
        ({"data": batches(tiles())}, r"`labelled` must be .* Received: TensorSpec"),
        ({"data": labelled().unbatch()}, r"`labelled` must be .*shape=\(6, 6, 1\)"),
        ({"data": batches(tiles(), np.eye(EXTRA, dtype=int))}, r"\(1, 10\) of an example of `labelled`.*argmax"),
        ({"data": batches(tiles(), ONES)}, "Labels must be integers.*float64 of an example of `labelled`"),
        ({"augment": "mixup"}, "the labels of `labelled` must be soft: .*'mixup' and integer labels"),
        ({"data": soft(), "extra": (tiles(), EXTRA_LABELS + 1)}, r"Labels must lie in \[0, 3\).*`extra`"),
        ({"data": labelled(index=True).map(lambda inputs, labels: (inputs, tf.one_hot(labels, 3)))}, "both soft"),
        ({"extra": EXTRA_IMAGES}, "Extra images need labels, or a `network` that predicts labels. Received: neither"),
        ({"network": "any"}, "if the extra images have labels.*labels and network='any'"),
        ({"extra": (tiles(), ONES)}, "Labels must be integers.*`extra`"),
        ({"extra": (tiles(), EXTRA_LABELS[1:])}, "same length. Received: 10 images and 9 labels in `extra`"),
        ({"extra": (tiles() * 255.0 + 255, EXTRA_LABELS)}, "by 255"),
        ({"extra": (tiles(0), EXTRA_LABELS[:0])}, "must not be empty.*`extra`"),
        ({"extra": (tiles(shape=(5, 6, 1)), EXTRA_LABELS)}, r"same shape. Received: \(6, 6, 1\) and \(5, 6, 1\)"),
        ({"extra": batches(tiles(), EXTRA_LABELS).repeat()}, "a finite tf.data.Dataset of batches.*batches: -1"),
        ({"extra": batches(tiles(), EXTRA_LABELS, ONES)}, "a finite tf.data.Dataset of batches.*batches: 5"),
        ({"extra": batches(tiles()).unbatch()}, "a finite tf.data.Dataset of batches.*batches: -2"),
        ({"extra": batches(tiles()).skip(9)}, "must not be empty. Received: no batch in `extra`"),
        ({"extra": tiles(), "network": linear_network(np.eye(36), np.zeros(36), (36, 1, 1))}, "Images must have shape"),
        ({"extra": tiles(), "network": SQUASHING}, "must return logits. Received: a network that ends in"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        mix(**arguments)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"x": EXTRA_IMAGES}, "must have the key image or images, or x_train.*extra.npz with x"),
        ({"x_train": EXTRA_IMAGES}, r"without \['y_train', 'x_test', 'y_test'\]"),
        ({"image": EXTRA_IMAGES[0, 0]}, r"Images must be \[examples.*image of .*extra.npz"),
        ({"image": EXTRA_IMAGES, "label": ONES}, "Labels must be integers.*image, label of .*extra.npz"),
    ],
)
def test_bad_files(keys, message, tmp_path):
    np.savez(tmp_path / "extra.npz", **keys)
    with pytest.raises(ValueError, match=message):
        datasets.load_extra(f"npz:{tmp_path / 'extra.npz'}")


def test_a_missing_file():
    with pytest.raises(ValueError, match=r"must be an existing file.*/nowhere/extra\.npz"):
        datasets.load_extra("npz:/nowhere/extra.npz")
