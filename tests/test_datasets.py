"""keras_mart.datasets: splits, order, crops, sources, and every error by the input that raises it."""

import concurrent.futures
import hashlib
import io
import pathlib
import subprocess
import sys
import threading
import time
import typing
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_mart import datasets
from keras_mart.datasets import batches, cache, cropping, encoded, folder, operations, recipes, sources, steps
from keras_mart.datasets import npz as npz_files

TRAIN, TEST = 40, 10
DIGITS_FIRST_LABELS = [[0, 3, 0, 1, 2, 5, 6, 0], [1, 2, 7, 8, 3, 2, 6, 7], [4, 5, 6, 9, 4, 7, 8, 9]]
FOLDER_TEST_IMAGES = [3, 5, 11, 12, 23, 27, 29, 35, 36, 41, 59, 60]


def numbered(first, count, size=6):
    """Returns uint8 [count, size, size, 3] images without zeros; the first value of image k identifies it."""
    images = np.random.RandomState(first).randint(1, 256, [count, size, size, 3]).astype(np.uint8)
    images[:, 0, 0, 0] = first + np.arange(count) + 1
    return images


def arrays(**changes):
    whole = {
        "x_train": numbered(0, TRAIN),
        "y_train": np.arange(TRAIN) % 4,
        "x_test": numbered(TRAIN, TEST),
        "y_test": np.arange(TEST) % 4,
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


@pytest.fixture
def npz(tmp_path):
    def write(**changes):
        np.savez(tmp_path / "data.npz", **arrays(**changes))
        return f"npz:{tmp_path / 'data.npz'}"

    return write


def write_images(folder, images, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        encode = tf.io.encode_png if suffix == ".png" else tf.io.encode_jpeg
        (folder / f"{number:03}{suffix}").write_bytes(encode(image).numpy())


def epoch(dataset):
    """Iterates once; returns (images, labels) or ((images, index), labels) as arrays."""
    inputs, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    if isinstance(inputs[0], tuple):
        images, index = zip(*inputs, strict=True)
        return (np.concatenate(images), np.concatenate(index)), np.concatenate(labels)
    return np.concatenate(inputs), np.concatenate(labels)


def index_order(dataset):
    return epoch(dataset)[0][1].tolist()


# The digits


def test_digits_are_the_uci_test_set_in_its_order():
    with np.load(pathlib.Path(datasets.__file__).parents[1] / "data" / "digits.npz") as file:
        images, labels = file["images"], file["labels"]
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and images.min() == 0 and images.max() == 16
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert labels[:10].tolist() == list(range(10))
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_digits_are_described_and_scaled():
    described = datasets.describe("digits")
    assert described == (10, (8, 8, 1), {"train": 1197, "validation": 200, "test": 400})
    images, labels = epoch(datasets.load("digits", "test"))
    assert images.shape == (400, 8, 8, 1) and images.dtype == np.float32 and labels.dtype == np.int32
    assert images.min() == 0 and images.max() == 1
    np.testing.assert_array_equal(images * 16, np.round(images * 16))


def test_digits_split_stays_as_published():
    # If these numbers change, so has the split, and accuracies cannot be compared with those in the docs.
    labels = [epoch(datasets.load("digits", split, shuffle=False))[1] for split in datasets.SPLITS]
    assert [part[:8].tolist() for part in labels] == DIGITS_FIRST_LABELS
    assert np.concatenate(labels).sum() == 8070  # the sum of all 1,797 labels


# Splits


def test_train_and_validation_are_the_training_data_cut_in_two(npz):
    name = npz()
    parts = {split: epoch(datasets.load(name, split, shuffle=False)) for split in datasets.SPLITS}
    whole = {tuple(image.ravel()): label for image, label in zip(numbered(0, TRAIN), np.arange(TRAIN) % 4, strict=True)}
    found = []
    for split in ("train", "validation"):
        for image, label in zip(*parts[split], strict=True):
            key = tuple(np.round(image * 255).astype(int).ravel())
            assert whole[key] == label
            found.append(key)
    assert len(parts["validation"][1]) == TRAIN // 10
    assert len(found) == len(set(found)) == TRAIN
    np.testing.assert_array_equal(parts["test"][0] * 255, numbered(TRAIN, TEST))
    assert datasets.describe(name).num_examples == {"train": 36, "validation": 4, "test": 10}


def test_held_out_examples_do_not_depend_on_the_seed(npz):
    name = npz()
    first, second = (epoch(datasets.load(name, "validation", seed=seed))[0] for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_validation_has_at_most_5000_examples(npz):
    labels = np.zeros(60000, np.uint8)
    name = npz(x_train=labels[:, None, None], y_train=labels, x_test=np.zeros([TEST, 1, 1], np.uint8))
    assert datasets.describe(name).num_examples["validation"] == 5000


# Order and batches


def test_each_epoch_has_a_new_order_that_repeats_with_the_seed():
    options = {"with_index": True, "remainder": "keep"}
    first, again, other = (datasets.load("digits", seed=seed, **options) for seed in (3, 3, 4))
    orders = [index_order(first) for _ in range(3)]
    assert all(sorted(order) == list(range(1197)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [index_order(again) for _ in range(3)] == orders
    assert index_order(other) != orders[0]


def test_an_epoch_is_a_function_of_its_number_and_can_be_begun_in_its_middle():
    now = 3
    options = {"batch_size": 100, "augment": "crop", "epoch": lambda: now}
    whole, rest = (datasets.load("digits", first_batch=first, **options) for first in (0, 5))
    batches = list(whole.as_numpy_iterator())
    assert len(rest) == len(batches) - 5
    for (images, labels), (expected, expected_labels) in zip(rest.as_numpy_iterator(), batches[5:], strict=True):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, expected_labels)
    now = 4
    assert any(np.any(one[1] != other[1]) for one, other in zip(whole.as_numpy_iterator(), batches, strict=True))


def test_keras_sees_a_new_order_in_each_epoch_of_fit():
    seen = []

    class Recorder(keras.Model):
        def train_step(self, data):
            (_, index), _ = data
            seen.append(index.numpy().tolist())
            return {"loss": 0.0}

    model = Recorder()
    model.built = True  # otherwise Keras reads a batch to build the model, and needs a call()
    model.compile(run_eagerly=True)
    model.fit(datasets.load("digits", with_index=True, batch_size=1197), epochs=3, shuffle=False, verbose=0)
    assert all(sorted(order) == list(range(1197)) for order in seen) and len(seen) == 3
    assert seen[0] != seen[1] != seen[2]


def test_index_is_the_examples_own_and_goes_with_its_image_and_label():
    images, labels = epoch(datasets.load("digits", shuffle=False))
    (shuffled, index), shuffled_labels = epoch(datasets.load("digits", with_index=True, remainder="keep"))
    assert index.dtype == np.int32
    np.testing.assert_array_equal(shuffled, images[index])
    np.testing.assert_array_equal(shuffled_labels, labels[index])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_train_is_shuffled_by_default(split):
    assert index_order(datasets.load("digits", split, with_index=True)) == sorted(
        index_order(datasets.load("digits", split, with_index=True, shuffle=True))
    )


def batch_sizes(dataset):
    sizes = [len(labels) for _, labels in dataset]
    assert dataset.cardinality() == len(dataset) == len(sizes)
    return sizes


def test_training_drops_a_remainder_that_differs_between_epochs():
    dataset = datasets.load("digits", with_index=True, batch_size=500)
    assert batch_sizes(dataset) == [500, 500]
    assert dataset.element_spec[0][0].shape.as_list() == [500, 8, 8, 1]
    left_out = [set(range(1197)) - set(index_order(dataset)) for _ in range(2)]
    assert [len(each) for each in left_out] == [197, 197] and left_out[0] != left_out[1]
    whole = datasets.load("digits", with_index=True, batch_size=500, remainder="keep", epoch=lambda: 5)
    full = datasets.load("digits", with_index=True, batch_size=500, epoch=lambda: 5)
    assert index_order(whole)[:1000] == index_order(full)


def test_the_remainder_is_kept_on_request_and_without_shuffling():
    for options in ({"remainder": "keep"}, {"shuffle": False}):
        assert batch_sizes(datasets.load("digits", batch_size=500, **options)) == [500, 500, 197]
    assert batch_sizes(datasets.load("digits", "test", batch_size=300)) == [300, 100]
    assert batch_sizes(datasets.load("digits", "test", batch_size=300, remainder="drop")) == [300]
    assert batch_sizes(datasets.load("digits", batch_size=2000)) == [1197]  # less than one batch is not dropped


@pytest.mark.parametrize("with_index", [False, True])
def test_padded_batches_have_one_size_and_mark_real_examples(with_index):
    dataset = datasets.load("digits", "validation", batch_size=50, with_index=with_index)
    for (images, labels, weights, real), (expected, wanted) in zip(batches.pad_batches(dataset), dataset, strict=True):
        count = len(wanted)
        assert len(labels) == len(weights) == 50 and real.numpy().tolist() == [1.0] * count + [0.0] * (50 - count)
        for one, other in zip(tf.nest.flatten([images, labels]), tf.nest.flatten([expected, wanted]), strict=True):
            np.testing.assert_array_equal(one[:count], other)
            assert not np.any(one[count:])


def test_batch_size_none_gives_single_examples():
    dataset = datasets.load("digits", batch_size=None, with_index=True)
    assert dataset.cardinality() == 1197
    elements = list(dataset.as_numpy_iterator())
    assert sorted(index for (_, index), _ in elements) == list(range(1197))
    assert elements[0][0][0].shape == (8, 8, 1)


def test_workers_share_out_examples_and_order_is_deterministic():
    options = datasets.load("digits").options()
    assert options.experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.DATA
    assert options.deterministic


# Augmentation


def windows(image, flip):
    """Returns every crop of `image` padded by 4 zeros, and with `flip` those of its mirror image."""
    size = image.shape[0]
    padded = [np.pad(view, [(4, 4), (4, 4), (0, 0)]) for view in ([image, image[:, ::-1]] if flip else [image])]
    corners = [(row, column) for row in range(9) for column in range(9)]
    return [view[row : row + size, column : column + size] for view in padded for row, column in corners]


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_every_crop_is_a_window_of_its_own_image(npz, augment):
    name = npz()
    originals, labels = epoch(datasets.load(name, shuffle=False))
    (images, index), cropped_labels = epoch(datasets.load(name, augment=augment, with_index=True, batch_size=7))
    chosen = []
    for image, original in zip(images, originals[index], strict=True):
        matches = [np.array_equal(image, window) for window in windows(original, augment == "crop_flip")]
        assert any(matches)
        chosen.append(matches.index(True))
    np.testing.assert_array_equal(cropped_labels, labels[index])
    assert len(set(chosen)) > len(chosen) // 2  # shifts differ between images
    mirrored = sum(choice >= 81 for choice in chosen)
    assert mirrored == 0 if augment == "crop" else 0 < mirrored < len(chosen)


def test_all_shifts_are_equally_likely_and_half_are_mirrored():
    ramp = np.tile(np.arange(1, 10, dtype=np.float32)[:, None, None] * 10 + np.arange(1, 10)[:, None], [5000, 1, 1, 1])
    centre = cropping.crop(ramp, [1, 2], flip=True).numpy()[:, 4:5, 3:6, 0]
    rows, columns = np.divmod(centre[:, 0, 1], 10)
    steps = centre[:, 0, 2] - centre[:, 0, 0]
    for shifts in (rows, columns):
        counts = np.bincount(shifts.astype(int), minlength=10)[1:]
        assert counts.shape == (9,) and abs(counts - 5000 / 9).max() < 110  # 5 standard deviations
    assert abs((steps < 0).mean() - 0.5) < 0.07


def test_crops_are_new_in_each_epoch_and_repeat_with_the_seed():
    first, again = (datasets.load("digits", augment="crop", shuffle=False, seed=5) for _ in range(2))
    epochs = [epoch(first)[0] for _ in range(2)]
    assert np.any(epochs[0] != epochs[1])
    for images in epochs:
        np.testing.assert_array_equal(epoch(again)[0], images)
    assert np.any(epoch(datasets.load("digits", augment="crop", shuffle=False, seed=6))[0] != epochs[0])


@pytest.mark.parametrize(("augment", "digest"), [("crop", "fc3fccf4de27002f"), ("crop_flip", "dd23b954b3c6d533")])
def test_crops_stay_what_they_were_bit_for_bit(augment, digest):
    found = hashlib.sha256()
    data = datasets.load("digits", augment=augment, seed=7, epoch=lambda: 3, with_index=True)
    for each in tf.nest.flatten(list(data.as_numpy_iterator())):
        found.update(each.tobytes())
    assert found.hexdigest().startswith(digest)


@pytest.mark.parametrize("augment", [*datasets.AUGMENTATIONS, ("crop", keras.layers.RandomRotation, "cutout", "mixup")])
def test_an_augmentation_is_a_function_of_the_seed_the_epoch_and_the_batch(npz, monkeypatch, augment):
    monkeypatch.setattr(recipes, "AUGMIX_DEPTH", 2)  # fewer repetitions of the same choice
    monkeypatch.setattr(recipes, "RANDAUGMENT_OPERATIONS", 1)
    now, given = 2, augment

    def load(**options):
        nonlocal given
        if not isinstance(augment, str):  # with a new layer, whose random state differs
            given = [each(0.2, seed=None) if isinstance(each, type) else each for each in augment]
        return datasets.load(npz(), augment=given, batch_size=8, seed=5, epoch=lambda: now, **options)

    whole, rest = load(), load(first_batch=2)
    other = next(whole.as_numpy_iterator())[0]
    now = 1
    elements = list(whole.as_numpy_iterator())
    np.testing.assert_array_equal(next(whole.as_numpy_iterator())[0], elements[0][0])
    assert np.any(other != elements[0][0])
    for expected, got in zip(elements[2:], rest.as_numpy_iterator(), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, got)
    plain = datasets.load(npz(), batch_size=8, seed=5, epoch=lambda: now)
    for (images, labels), (before, classes) in zip(elements, plain.as_numpy_iterator(), strict=True):
        assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1 and np.any(images != before)
        if labels.ndim == 1:
            np.testing.assert_array_equal(labels, classes)
    assert whole.element_spec[0].shape == [8, 6, 6, 3]


@pytest.mark.parametrize("recipe", [recipes.idbh, recipes.randaugment, recipes.augmix])
def test_recipes_take_grey_images_each_with_its_own_changes(recipe):
    images = np.tile(np.random.RandomState(0).uniform(size=[1, 12, 12, 1]).astype(np.float32), [40, 1, 1, 1])
    changed = recipe()(tf.constant(images), [1, 2]).numpy()
    assert changed.shape == images.shape and len({each.tobytes() for each in changed}) > 25


def test_one_of_several_steps_is_taken_with_each_image_in_its_place():
    images = tf.reshape(tf.range(300.0), [300, 1, 1, 1])
    found = steps.random_choice([lambda part, _, share=share: part + share for share in (0.25, 0.5, 0.75)])(
        images, [3, 4]
    )
    shares = (found - images).numpy().reshape(-1)
    counts = [int((shares == share).sum()) for share in (0.25, 0.5, 0.75)]
    assert sum(counts) == 300 and min(counts) > 70


def test_equalisation_and_ratios_are_those_of_single_images():
    images = tf.constant(
        np.random.RandomState(0).uniform(size=[4, 8, 8, 3]) ** [[[[3.0]]], [[[1.0]]], [[[1.0]]], [[[0.3]]]]
    )
    images, seed = tf.cast(images, tf.float32), [1, 2]
    _, equalised = operations.histograms()
    for place in range(4):
        np.testing.assert_array_equal(equalised(images, seed)[place], equalised(images[place : place + 1], seed)[0])
    grey = tf.image.rgb_to_grayscale(images)
    colour, light, *_ = operations.ratios(*[(1.5, 1.5)] * 4)
    np.testing.assert_allclose(colour(images, seed), np.clip(1.5 * images - 0.5 * grey, 0, 1), atol=1e-3)
    np.testing.assert_allclose(light(images, seed), np.minimum(1.5 * images, 1), atol=1e-6)


def blocks(images):
    """Returns (first row, rows, first column, columns) of the nonzero values, which must fill a rectangle."""
    found = []
    for image in images[..., 0]:
        rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
        assert (
            np.all(image[np.ix_(rows, columns)])
            and np.ptp(rows) == len(rows) - 1
            and np.ptp(columns) == len(columns) - 1
        )
        found.append((rows[0], len(rows), columns[0], len(columns)))
    return np.transpose(found)


def test_cutout_takes_a_square_that_the_image_may_cut():
    hole = 1 - cropping.cutout(tf.ones([500, 32, 32, 1]), [1, 2]).numpy()
    first_row, rows, first_column, columns = blocks(hole)
    for first, size in ((first_row, rows), (first_column, columns)):
        assert size.min() == 8 and size.max() == 16
        assert np.all((size == 16) | (first == 0) | (first + size == 32))
        assert abs(np.mean(size == 16) - 17 / 32) < 0.1  # centres from 8 to 24
    assert np.any(rows != columns)


def test_cropshift_keeps_a_window_and_puts_it_anywhere():
    number = tf.reshape(tf.range(1, 32 * 32 + 1), [1, 32, 32, 1])
    moved = cropping.cropshift(tf.tile(number, [1000, 1, 1, 1]), [1, 2]).numpy()
    row, rows, column, columns = blocks(moved)
    lost = 64 - rows - columns
    assert np.bincount(lost, minlength=11).shape == (11,) and np.bincount(lost).min() > 50  # of about 91
    begins = np.divmod(moved[np.arange(1000), row, column, 0] - 1, 32)
    for place, size, begin in ((row, rows, begins[0]), (column, columns, begins[1])):
        for each in (place, begin):
            assert np.all(each <= 32 - size) and 0.4 < each[size < 32].mean() / (32 - size[size < 32]).mean() < 0.6
    for image, *block, top, left in zip(moved, row, rows, column, columns, *begins, strict=True):
        window = image[block[0] : block[0] + block[1], block[2] : block[2] + block[3], 0]
        np.testing.assert_array_equal(window, number[0, top : top + block[1], left : left + block[3], 0])


@pytest.mark.parametrize("augment", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_images(npz, augment):
    values = np.uint8([10, 60, 110, 250])  # of the pixels of each class
    name = npz(
        x_train=np.tile(values[np.arange(TRAIN) % 4][:, None, None, None], [1, 32, 32, 3]),
        x_test=np.zeros([TEST, 32, 32, 3], np.uint8),
    )
    ((images, labels),) = datasets.load(name, augment=augment, batch_size=36).as_numpy_iterator()
    assert labels.dtype == np.float32 and labels.shape == (36, 4)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    expected = labels @ (values / np.float32(255))
    if augment == "mixup":
        np.testing.assert_allclose(images, np.broadcast_to(expected[:, None, None, None], images.shape), atol=1e-6)
    else:
        np.testing.assert_allclose(images.mean((1, 2, 3)), expected, atol=0.08)  # boxes are rounded to pixels
        assert set(np.unique(np.round(images * 255))) == set(values.tolist())
    assert 0 < (labels.max(1) < 0.99).sum()


def test_augmentations_after_a_crop_get_the_resized_images(npz):
    plain, cut = (
        epoch(datasets.load(npz(), image_size=5, augment=augment, epoch=lambda: 1))[0]
        for augment in ("crop_flip", ("crop_flip", "cutout"))
    )
    assert np.any(cut != plain) and np.all((cut == plain) | (cut == 0))


# Sources


def test_npz_gains_the_channel_axis_and_loses_that_of_the_labels(npz):
    grey_train, grey_test = numbered(0, TRAIN)[..., 0], numbered(0, TEST)[..., 0]
    name = npz(x_train=grey_train, x_test=grey_test, y_test=np.ones([TEST, 1], np.uint8))
    assert datasets.describe(name).input_shape == (6, 6, 1)
    assert epoch(datasets.load(name, "test"))[1].tolist() == [1] * TEST


def test_float_images_are_kept_and_uint8_divided_by_255(npz):
    images = np.random.RandomState(0).uniform(size=[TEST, 6, 6, 3])
    np.testing.assert_array_equal(epoch(datasets.load(npz(x_test=images), "test"))[0], images.astype(np.float32))
    np.testing.assert_array_equal(
        epoch(datasets.load(npz(), "test"))[0], numbered(TRAIN, TEST).astype(np.float32) / np.float32(255)
    )


def arrays_of(name):
    return npz_files.read_arrays(pathlib.Path(name.removeprefix("npz:")), list(arrays()))


def base(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def test_arrays_that_are_not_compressed_stay_in_the_file(npz, tmp_path):
    name = npz(x_test=np.asfortranarray(numbered(TRAIN, TEST)))
    mapped = arrays_of(name)
    np.savez_compressed(tmp_path / "small.npz", **arrays())
    read = arrays_of(f"npz:{tmp_path / 'small.npz'}")
    for one, other, compressed in zip(mapped, arrays().values(), read, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(compressed, other)
        assert not isinstance(base(one), np.ndarray) and isinstance(base(compressed), np.ndarray)
    splits = sources.read(name).splits
    assert all(not isinstance(base(splits[each].images.images), np.ndarray) for each in ("train", "validation"))


def mapped_bytes():
    words = pathlib.Path("/proc/self/status").read_text().split()
    return int(words[words.index("RssFile:") + 1]) * 1024


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="asks Linux for memory")
def test_memory_of_a_mapped_file_is_released(npz):
    count, size = 2000, 64
    images = np.zeros([count, size, size, 3], np.uint8)
    name = npz(x_train=images, y_train=np.arange(count) % 4, x_test=images[:1], y_test=[0])
    before = mapped_bytes()
    assert len(epoch(datasets.load(name))[1]) == 1792
    assert mapped_bytes() - before < images.nbytes / 4


def test_a_changed_file_is_read_again(npz):
    name = npz()
    assert datasets.describe(name).num_classes == 4
    npz(y_test=np.arange(TEST))
    assert datasets.describe(name).num_classes == 10


def test_folder_with_train_and_test(tmp_path):
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(["ant", "bee"]):
            write_images(tmp_path / split / name, numbered(100 * label, count))
    (tmp_path / "train" / "ant" / "._000.png").write_bytes(b"left behind by macOS")
    (tmp_path / "train" / "notes").mkdir()
    name = f"folder:{tmp_path}"
    assert datasets.describe(name) == (2, (6, 6, 3), {"train": 18, "validation": 2, "test": 6})
    assert datasets.class_names(name) == ("ant", "bee") and datasets.class_names("digits") is None
    images, labels = epoch(datasets.load(name, "test"))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(images * 255, np.concatenate([numbered(0, 3), numbered(100, 3)]))


def test_folder_of_classes_is_split_the_same_way_every_time(tmp_path):
    for label, name in enumerate("abc"):
        write_images(tmp_path / name, numbered(20 * label, 20))
    name = f"folder:{tmp_path}"
    assert datasets.describe(name) == (3, (6, 6, 3), {"train": 44, "validation": 4, "test": 12})
    images = [epoch(datasets.load(name, split))[0] for split in datasets.SPLITS]
    numbers = [(part[:, 0, 0, 0] * 255).round().astype(int).tolist() for part in images]
    assert sorted(numbers[0] + numbers[1] + numbers[2]) == list(range(1, 61))
    assert numbers[2] == FOLDER_TEST_IMAGES


def test_jpeg_is_decoded_as_libjpeg_does(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    image = tf.image.resize(numbered(0, 1, 8), [32, 32])[0]
    for name in "ab":
        write_images(tmp_path / name, [tf.cast(image, tf.uint8)] * 5, ".jpg")
    expected = np.asarray(image_module.open(tmp_path / "a" / "000.jpg"))
    found = epoch(datasets.load(f"folder:{tmp_path}", "test"))[0][0] * 255
    np.testing.assert_array_equal(found, expected)


# Images that are decoded when they are needed


def write_folder(path, sizes=((6, 6),), suffix=".png", count=12):
    """Writes a folder of 2 classes with images of these sizes in turn; returns its dataset name."""
    for label, name in enumerate("ab"):
        images = [
            np.random.RandomState(100 * label + each).randint(1, 256, [*sizes[each % len(sizes)], 3]).astype(np.uint8)
            for each in range(count)
        ]
        write_images(path / name, images, suffix)
    return f"folder:{path}"


@pytest.fixture
def lazy(monkeypatch):
    """Disables the decoding of small images when the data are opened."""
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 0)


MIXED = [(6, 6), (9, 7), (12, 5), (6, 20)]


def epochs_equal(one, other):
    for expected, got in zip(one.as_numpy_iterator(), other.as_numpy_iterator(), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, got)


def test_images_are_the_same_whenever_they_are_decoded(tmp_path, monkeypatch):
    options = {"batch_size": 5, "augment": "crop_flip", "with_index": True, "remainder": "keep"}
    name = write_folder(tmp_path)
    at_once = datasets.load(name, **options)
    sources._read.cache_clear()
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 0)
    decoded = []
    monkeypatch.setattr(
        encoded, "decode", lambda *args, old=encoded.decode, **how: decoded.append(1) or old(*args, **how)
    )
    as_needed = datasets.load(name, **options)
    assert not decoded
    epochs_equal(at_once, as_needed)
    assert len(decoded) == datasets.describe(name).num_examples["train"]


def test_damaged_files_are_named_when_they_are_decoded(tmp_path, lazy):
    folder = tmp_path / "ü]'"
    name = write_folder(folder)
    for path in folder.glob("a/*.png"):
        path.write_bytes(path.read_bytes()[:-40])
    data = datasets.load(name, remainder="keep", batch_size=4)
    network = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    network.compile(loss="sparse_categorical_crossentropy")
    with pytest.raises(tf.errors.OpError, match=r"complete PNG or JPEG file\. Received: .*a/0..\.png") as caught:
        network.fit(data, shuffle=False, verbose=0)
    rule = "Every image must be a complete PNG or JPEG file. Received: "
    assert str(datasets.refusal(caught.value)) in [rule + str(path) for path in folder.glob("a/*.png")]
    assert datasets.refusal(tf.errors.InvalidArgumentError(None, None, "another")) is None


def test_grey_and_transparent_images_among_others_become_rgb(tmp_path):
    name = write_folder(tmp_path)
    grey, transparent = np.full([6, 6, 1], 77, np.uint8), np.full([6, 6, 4], 99, np.uint8)
    (tmp_path / "a" / "000.png").write_bytes(tf.io.encode_png(grey).numpy())
    (tmp_path / "b" / "000.png").write_bytes(tf.io.encode_png(transparent).numpy())
    assert datasets.describe(name).input_shape == (6, 6, 3)
    images = np.concatenate(
        [images for split in datasets.SPLITS for images, _ in datasets.load(name, split, remainder="keep")]
    )
    flat = [image[0, 0] * 255 for image in images if np.ptp(image) == 0]
    np.testing.assert_allclose(sorted(map(tuple, flat)), [[77] * 3, [99] * 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "must remain in its place .*Received: .*000.png"), (5, r"not change.*\(5, 5, 3\).*\(6, 6, 3\)")],
)
def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path, lazy, content, message):
    data = datasets.load(write_folder(tmp_path), remainder="keep")
    for path in tmp_path.glob("*/000.png"):
        path.unlink()
        if content:
            path.write_bytes(SMALLER_PNG)
    with pytest.raises(tf.errors.OpError, match=message):
        list(data)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sizes_are_read_from_headers(channels):
    image = np.random.RandomState(0).randint(0, 256, [7, 5, channels]).astype(np.uint8)
    contents = [tf.io.encode_png(image).numpy(), *([] if channels == 4 else [tf.io.encode_jpeg(image).numpy()])]
    for content in contents:
        assert encoded.header_shape(io.BytesIO(content)) == encoded.decode(content).shape == (7, 5, channels)
    comment = b"\xff\xff\xfe\xff\xff" + bytes(0xFFFF - 2)  # the longest segment, after an additional 0xFF
    assert (
        encoded.header_shape(io.BytesIO(contents[-1][:2] + comment + contents[-1][2:])) == (7, 5, channels)
        or channels == 4
    )
    assert encoded.header_shape(io.BytesIO(contents[-1][:9])) is encoded.header_shape(io.BytesIO(b"no image")) is None


def test_replicas_share_out_what_is_decoded_as_needed(tmp_path, lazy, two_replicas):
    options = {"batch_size": 5, "image_size": 4, "augment": "crop_flip", "remainder": "keep", "epoch": lambda: 1}
    data = datasets.load(write_folder(tmp_path, MIXED), **options)
    shared = [
        tuple(map(two_replicas.experimental_local_results, each))
        for each in two_replicas.experimental_distribute_dataset(data)
    ]
    for (images, labels), expected in zip(shared, data, strict=True):
        for parts, whole in zip((images, labels), expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_no_images_are_fetched_when_a_process_ends():
    # Otherwise the process sometimes hangs: the interpreter and the thread wait for each other.
    program = """
import atexit, time
import numpy as np
def tell():  # runs after all functions that are registered later
    last = calls.last
    time.sleep(0.3)
    print("running" if calls.running or calls.last > last else "at rest")
atexit.register(tell)
from keras_mart import datasets
calls = datasets.fetching._calls
class Slow(np.ndarray):
    def __getitem__(self, index):
        time.sleep(0.01)
        return np.ndarray.__getitem__(self.view(np.ndarray), index)
images = np.zeros([1000, 6, 6, 1], np.uint8).view(Slow)
gather = datasets.batches.gatherer(datasets.sources.Examples(images, np.zeros(1000, int)))
data = datasets.tf.data.Dataset.range(1000).batch(1).map(lambda index: gather(index, None), 2).prefetch(1000)
iterator = iter(data)
next(iterator)
raise SystemError
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "SystemError" in ended.stderr and ended.stdout == "at rest\n"


# Resizing


def test_the_shorter_side_is_resized_and_the_middle_kept(tmp_path):
    name = write_folder(tmp_path, MIXED)
    assert datasets.describe(name, image_size=4).input_shape == (4, 4, 3)
    assert datasets.describe(name, image_size=4).num_examples == {"train": 18, "validation": 2, "test": 4}
    images, _ = datasets.load_examples(name, "test", range(4), image_size=4)
    files = sorted(tmp_path.glob("*/*.png"))
    chosen = np.sort(np.random.RandomState(0).permutation(24)[:4])
    for image, number in zip(images, chosen, strict=True):
        original = encoded.decode(files[number].read_bytes()).numpy()
        height, width = original.shape[:2]
        whole = tf.image.resize(original / 255, [height * 4 // min(height, width), width * 4 // min(height, width)],
                                antialias=True).numpy()  # fmt: skip
        top, left = (whole.shape[0] - 4) // 2, (whole.shape[1] - 4) // 2
        np.testing.assert_allclose(image, whole[top : top + 4, left : left + 4], atol=1e-6)
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1


def test_every_source_is_resized_and_images_of_the_right_size_are_unchanged(npz):
    for name, size, channels in (("digits", 8, 1), (npz(), 6, 3)):
        epochs_equal(datasets.load(name, "test"), datasets.load(name, "test", image_size=size))
        resized = datasets.load(name, image_size=5, batch_size=7)
        assert epoch(resized)[0].shape[1:] == (5, 5, channels)
        assert resized.element_spec[0].shape == [7, 5, 5, channels]
    assert datasets.describe(npz(x_test=numbered(0, TEST, 5)), image_size=6).input_shape == (6, 6, 3)


def test_random_parts_are_within_their_bounds():
    height, width, size = 40, 60, 20
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[:height, :width], 0.0), -1).astype(np.float32)
    cut = tf.function(lambda seed: cropping.random_resized_crop(ramp, size, seed, flip=True))
    parts = np.stack([cut(tf.constant([1, number])) for number in range(120)])
    steps = (parts[:, 1:, 1:, :2] - parts[:, :-1, :-1, :2])[:, 5:-5, 5:-5].mean((1, 2))  # source pixels per pixel
    mirrored = steps[:, 1] < 0
    extent = np.abs(steps) * size
    area, aspect = extent.prod(1) / (height * width), extent[:, 1] / extent[:, 0]
    assert 0.07 < area.min() < 0.15 and 0.7 < area.max() < 1.02
    assert 0.7 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.4
    assert abs(mirrored.mean() - 0.5) < 0.15
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(np.sign(steps[:, 1]), np.sign(steps[::-1, 1]))


def test_random_parts_are_a_function_of_the_seed_the_epoch_and_the_place(tmp_path):
    name, options = (
        write_folder(tmp_path, MIXED),
        {"augment": "crop", "image_size": 4, "batch_size": 4, "shuffle": False},
    )
    first, again = (datasets.load(name, seed=5, **options) for _ in range(2))
    epochs = [epoch(first)[0] for _ in range(2)]
    assert np.any(epochs[0] != epochs[1])
    for images in epochs:
        np.testing.assert_array_equal(epoch(again)[0], images)
    rest = epoch(datasets.load(name, seed=5, first_batch=2, **options))[0]
    np.testing.assert_array_equal(rest, epochs[0][8:])
    assert np.any(epoch(datasets.load(name, seed=6, **options))[0] != epochs[0])
    other = epoch(datasets.load(name, seed=5, **options | {"augment": "crop_flip"}))[0]
    mirrored = [np.array_equal(one, another[:, ::-1]) for one, another in zip(epochs[0], other, strict=True)]
    assert 0 < sum(mirrored) < len(mirrored)


# The cache


@pytest.mark.parametrize(
    ("sizes", "options"),
    [([(6, 6)], {}), (MIXED, {"image_size": 4}), (MIXED, {"image_size": 4, "augment": "crop_flip"})],
)
def test_cached_images_equal_decoded_ones(tmp_path, monkeypatch, lazy, sizes, options):
    name, kept = write_folder(tmp_path / "images", sizes, ".jpg"), {"cache": tmp_path / "kept" / "here"}
    epochs_equal(datasets.load(name, batch_size=7, **options), datasets.load(name, batch_size=7, **options, **kept))
    sources._read.cache_clear()
    monkeypatch.setattr(encoded, "decode", None)
    monkeypatch.setattr(encoded, "header_shape", None)
    again = datasets.load(name, batch_size=7, **options, **kept)
    assert len(list(again)) == 2 and datasets.class_names(name, **kept) == ("a", "b")
    assert len(list((tmp_path / "kept" / "here").glob("[!.]*"))) == 1


def test_a_changed_source_has_another_cache(tmp_path):
    name, kept = write_folder(tmp_path / "images"), tmp_path / "kept"
    before = datasets.load_examples(name, "test", [0], cache=kept)[0]
    write_images(tmp_path / "images" / "c", numbered(0, 3))
    assert datasets.describe(name, cache=kept).num_classes == 3
    assert len(list(kept.glob("[!.]*"))) == 2
    assert before.shape == (1, 6, 6, 3)


def test_a_file_that_moves_to_another_class_is_another_source(tmp_path):
    name, kept = write_folder(tmp_path / "images"), tmp_path / "kept"
    before = [labels.numpy().tolist() for _, labels in datasets.load(name, shuffle=False, cache=kept)]
    (tmp_path / "images" / "b" / "000.png").rename(tmp_path / "images" / "a" / "100.png")
    after = [labels.numpy().tolist() for _, labels in datasets.load(name, shuffle=False, cache=kept)]
    assert after == [labels.numpy().tolist() for _, labels in datasets.load(name, shuffle=False)] != before


def test_one_process_creates_a_cache_while_others_wait(tmp_path, monkeypatch):
    kept, source = tmp_path / "kept", folder.Folder(pathlib.Path(write_folder(tmp_path / "images").partition(":")[2]))
    (kept / ".unfinished-1-of_another_machine").mkdir(parents=True)
    write, begun, may_end, made = cache._write, threading.Event(), threading.Event(), []

    def slow(folder, source):
        begun.set()
        assert may_end.wait(60)
        made.append(folder)
        write(folder, source)

    monkeypatch.setattr(cache, "_write", slow)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        one = threads.submit(cache.load_or_create, kept, "folder:images", source)
        assert begun.wait(60)
        other = threads.submit(cache.load_or_create, kept, "folder:images", source)
        time.sleep(0.1)
        may_end.set()
        np.testing.assert_array_equal(one.result()[0]["whole"].images, other.result()[0]["whole"].images)
    assert len(made) == 1
    assert sorted(path.name.partition("-")[0] for path in kept.iterdir()) == [".lock", "folder"]


def test_a_cache_that_cannot_be_completed_is_not_created(tmp_path):
    name, kept = write_folder(tmp_path / "images"), tmp_path / "kept"
    (tmp_path / "images" / "a" / "001.png").write_bytes(PNG[:-40])
    with pytest.raises(ValueError, match=r"complete PNG or JPEG.*a/001\.png"):
        datasets.load(name, cache=kept)
    assert [path.name for path in kept.iterdir()] == [".lock"]


@pytest.mark.parametrize("part", ["pixels", "index.npz"])
@pytest.mark.parametrize("change", ["cut", "bit", "gone"])
def test_a_damaged_cache_is_refused(tmp_path, lazy, part, change):
    name, kept = write_folder(tmp_path / "images"), tmp_path / "kept"
    datasets.load(name, cache=kept)
    sources._read.cache_clear()
    (path,) = kept.glob(f"*/{part}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if change == "gone" else path.write_bytes(content[:-1] if change == "cut" else content)
    with pytest.raises((ValueError, tf.errors.OpError), match=r"cache must stay unchanged.*kept") as caught:
        list(datasets.load(name, remainder="keep", cache=kept))
    assert (part, change) != ("pixels", "bit") or "damaged pixels of" in str(caught.value)


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """A TFDS dataset whose splits are set by each test; it is written to and read from the disk as usual."""

    VERSION = tfds.core.Version("1.0.0")
    counts: typing.ClassVar = {}
    label_key = "label"
    size = (6, 6, 3)

    def _info(self):
        label = tfds.features.ClassLabel(num_classes=4)
        features = {"image": tfds.features.Image(shape=self.size), "label": label, "other": label}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", self.label_key),
        )

    def _split_generators(self, manager):
        return {split: self._generate_examples(*bounds) for split, bounds in self.counts.items()}

    def _generate_examples(self, first, count):
        for number, image in enumerate(numbered(first, count)):
            yield number, {"image": image, "label": number % 4, "other": 0}


@pytest.mark.parametrize("test_split", ["test", "validation"])
def test_tfds_reads_its_test_split_or_else_its_validation_split(tmp_path, monkeypatch, test_split):
    monkeypatch.setattr(TinyImages, "counts", {"train": (0, TRAIN), test_split: (TRAIN, TEST)})
    described = datasets.describe("tfds:tiny_images", tmp_path)
    assert described == (4, (6, 6, 3), {"train": 36, "validation": 4, "test": 10})
    assert datasets.class_names("tfds:tiny_images", tmp_path) == ("0", "1", "2", "3")
    images, _ = epoch(datasets.load("tfds:tiny_images", "test", data_dir=tmp_path))
    assert sorted(map(bytes, (images * 255).round().astype(np.uint8))) == sorted(map(bytes, numbered(TRAIN, TEST)))


@pytest.mark.parametrize("form", ["tfrecord", "array_record"])
@pytest.mark.parametrize("size", [(6, 6, 3), (None, None, 3)])
def test_tfds_images_are_decoded_as_they_are_needed(tmp_path, monkeypatch, lazy, form, size):
    monkeypatch.setattr(TinyImages, "counts", {"train": (0, TRAIN), "test": (TRAIN, TEST)})
    monkeypatch.setattr(TinyImages, "size", size)
    tfds.builder("tiny_images", data_dir=tmp_path, file_format=form).download_and_prepare()
    name, where = "tfds:tiny_images", {"data_dir": tmp_path}
    assert datasets.describe(name, **where) == (4, (6, 6, 3), {"train": 36, "validation": 4, "test": 10})
    images, labels = epoch(datasets.load(name, "test", **where))
    found = (images * 255).round().astype(np.uint8)
    assert sorted(map(bytes, found)) == sorted(map(bytes, numbered(TRAIN, TEST)))
    assert [(image[0, 0, 0] - TRAIN - 1) % 4 for image in found] == labels.tolist()
    kept = datasets.load(name, "test", cache=tmp_path / "kept", **where)
    epochs_equal(datasets.load(name, "test", **where), kept)


def test_tfds_without_a_test_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyImages, "counts", {"train": (0, TRAIN)})
    with pytest.raises(ValueError, match=r"must have train and test splits.*'tiny_images' with \['train'\]"):
        datasets.load("tfds:tiny_images", data_dir=tmp_path)


def test_tfds_of_another_kind_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyImages, "label_key", "other")
    with pytest.raises(ValueError, match=r"must be for image classification.*'other'"):
        datasets.load("tfds:tiny_images", data_dir=tmp_path)


def test_tfds_can_prepare_its_own_datasets(tmp_path):
    # Fails without importlib_resources, which TFDS 4.9.10 needs but does not require (tensorflow/datasets#11212).
    assert tfds.builder("cifar10", data_dir=tmp_path).code_path.name == "cifar.py"


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, r"must be one of digits, tfds:<name>.*'digit'. Did you mean 'digits'\?"),
        ({"name": "cifar10"}, "Did you mean 'tfds:cifar10'"),
        ({"name": "npz:"}, "must be one of"),
        ({"name": "tfds:cifar1O"}, "must name a TensorFlow dataset.*'cifar1O'.*Did you mean 'cifar10'"),
        ({"split": "validatoin"}, "`split` must be one of.*'validatoin'.*Did you mean 'validation'"),
        ({"augment": "flip"}, "`augment` must be one of crop_flip, crop.*'flip'"),
        ({"augment": "crop", "split": "test"}, "`augment` applies only to split='train'.*'test'"),
        ({"augment": ("cutout", "crop")}, "must contain at most one crop, at its beginning.*'cutout', 'crop'"),
        ({"augment": "mixup", "with_index": True}, "`with_index` must be False if `augment` mixes images.*'mixup'"),
        (
            {"augment": keras.layers.CutMix(), "with_index": True},
            "`with_index` must be False if `augment` mixes images",
        ),
        ({"augment": keras.layers.AugMix(value_range=(0, 1))}, "without a seed: use 'augmix'"),
        ({"augment": keras.layers.RandomBrightness(0.1)}, r"value_range=\(0, 1\).*value_range=\[0, 255\]"),
        ({"augment": keras.layers.RandomFlip(dtype="bfloat16")}, "must have dtype='float32'.*bfloat16"),
        ({"augment": keras.layers.CenterCrop(4, 4)}, r"must keep the shape.*to \(4, 4, 1\)"),
        ({"batch_size": 0}, "`batch_size` must be positive or None.*batch_size=0"),
        ({"batch_size": None, "first_batch": 1}, "`first_batch` needs a `batch_size`.*first_batch=1"),
        ({"name": "npz:/nowhere/data.npz"}, "must be an existing file.*/nowhere/data.npz"),
        ({"name": "folder:/nowhere"}, "must be an existing folder.*/nowhere"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(**({"name": "digits"} | arguments))


def floats(value):
    images = numbered(0, TRAIN) / 255
    images[3, 2, 1, 0] = value
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "y_test": None}, r"without \['x_test', 'y_test'\]"),
        ({"x_train": np.array([{}] * TRAIN, dtype=object)}, "never unpickled.*`x_train`"),
        ({"y_train": np.array(["a"] * TRAIN, dtype=object)}, "never unpickled.*`y_train`"),
        ({"x_train": np.zeros([TRAIN, 12], np.uint8)}, r"Images must be \[examples.*\(40, 12\)"),
        ({"x_train": np.zeros([TRAIN, 1, 6, 6, 3], np.uint8)}, r"Images must be \[examples.*\(40, 1, 6, 6, 3\)"),
        ({"x_train": numbered(0, TRAIN).astype(np.int64)}, "uint8, or floats.*int64"),
        ({"x_train": numbered(0, TRAIN).astype(np.float32)}, r"from \d+ to 255.*in \[0, 255\] by 255"),
        ({"x_train": floats(-0.5)}, "must lie in .0, 1.*from -0.5 to 1"),
        ({"x_train": floats(np.inf)}, "must lie in .0, 1.*to inf"),
        ({"x_train": floats(np.nan)}, "not contain NaN.*1 NaN"),
        ({"x_train": numbered(0, TRAIN)[:, :5]}, "same shape.*5, 6, 3.*6, 6, 3"),
        ({"x_train": numbered(0, 0), "y_train": np.zeros(0, int)}, "not be empty.*x_train"),
        ({"x_train": numbered(0, 1), "y_train": np.zeros(1, int)}, "enough examples.*1 examples"),
        ({"y_train": np.zeros(TRAIN)}, "Labels must be integers.*float64"),
        ({"y_train": np.zeros(TRAIN - 1, int)}, "same length.*40 images and 39 labels"),
        ({"y_train": np.eye(4, dtype=int)[np.arange(TRAIN) % 4]}, r"\(40, 4\).*argmax\(axis=-1\)"),
        ({"y_test": np.arange(TEST) - 1}, "from -1 to 8.*y_test"),
        ({"y_test": np.arange(TEST) + 2**31}, "2147483648.*from 2147483648"),
    ],
)
def test_bad_arrays(npz, changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(npz(**changes))


@pytest.mark.parametrize("augment", ["idbh", "randaugment"])
def test_colours_of_four_channels_are_refused(npz, augment):
    images = np.concatenate([numbered(0, TRAIN), numbered(0, TRAIN)[..., :1]], axis=-1)
    with pytest.raises(ValueError, match=rf"'{augment}' needs images with 1 or 3 channels.*\(6, 6, 4\)"):
        datasets.load(npz(x_train=images, x_test=images, y_test=np.arange(TRAIN) % 4), augment=augment)


@pytest.mark.parametrize("content", [b"", b"no archive", "cut", "array"])
def test_damaged_npz(tmp_path, npz, content):
    path = tmp_path / "data.npz"
    name = npz()
    if content == "cut":
        content = path.read_bytes()[:-1000]
    elif content == "array":
        with zipfile.ZipFile(path, "a") as archive:
            whole = {key: archive.read(key) for key in archive.namelist()}
        whole["x_test.npy"] = whole["x_test.npy"][:-1]
        with zipfile.ZipFile(path, "w") as archive:
            for key, value in whole.items():
                archive.writestr(key, value)
        content = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"complete.*data\.npz"):
        datasets.load(name)


PNG, SMALLER_PNG = (tf.io.encode_png(numbered(0, 1, size)[0]).numpy() for size in (6, 5))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must contain <class>/ folders"),
        ({"train/a/0.txt": b"", "test/a/0.txt": b""}, "must contain <class>/ folders"),
        ({"train/a/0.png": PNG}, "must have both.*no test/"),
        ({"train/a/0.png": PNG, "test/b/0.png": PNG}, r"also be in train/.*\['b'\]"),
        ({"a/0.png": PNG}, "enough examples"),
        ({"a/0.png": PNG, "b/1.png": SMALLER_PNG}, "same size.*a/0.png.*5, 5, 3.*b/1.png"),
        ({"a/0.png": PNG, "b/1.png": PNG[:-40]}, "complete PNG or JPEG.*b/1.png"),
        ({"a/0.jpg": b"", "b/1.png": PNG}, "complete PNG or JPEG.*a/0.jpg"),
    ],
)
def test_bad_folder(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        datasets.load(f"folder:{tmp_path}")
