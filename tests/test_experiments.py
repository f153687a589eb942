"""Tests the figures' own methods and the smaller training sets of experiments/."""

import keras
import numpy as np
import pytest
import test_losses as formulas
from conftest import images_and_labels, linear_network

import keras_mart as km
from experiments import data, figure1
from experiments.methods import ALTERATIONS, TREATMENTS, Altered, Partial, Split
from keras_mart.evaluation.run import Run as Directory
from keras_mart.methods import Outputs

# --- the figures' own methods ---

EXAMPLES, SHAPE, CLASSES, EPSILON, BETA = 8, (2, 2, 1), 3, 0.1, 1.5
ATTACK = km.PGD(km.Linf(EPSILON), steps=2, step_size=0.05)
X, Y = images_and_labels(EXAMPLES, SHAPE, low=0.3, high=0.7)  # no ball reaches 0 or 1
NUM_EXAMPLES = 12
INDEX = np.array([11, 3, 0, 7, 5, 2, 9, 4])
CHOSEN = [0, 4, 5, 10, 11]
IS_CHOSEN = np.array([True, False, True, False, True, False, False, True])  # for each of INDEX
SEED = keras.ops.convert_to_tensor([0, 1])
WEIGHTS = np.random.default_rng(1).normal(size=(4, CLASSES)).astype("float32")


def logits(seed):
    return (np.random.default_rng(seed).normal(size=(EXAMPLES, CLASSES))).astype("float32")


NATURAL, ADVERSARIAL = logits(2), logits(3)
OUTPUTS = Outputs(NATURAL, ADVERSARIAL, EPSILON, INDEX)
KL = formulas.kl_divergence(NATURAL, ADVERSARIAL)
WEIGHT = formulas.misclassification_weight(Y, NATURAL)
BCE = formulas.boosted_cross_entropy(Y, ADVERSARIAL)
EXPECTED = {
    "no_weight": BCE + BETA * KL,
    "no_kl": BCE + BETA * WEIGHT,
    "no_weight_no_kl": BCE,
    "ce": formulas.cross_entropy(Y, ADVERSARIAL) + BETA * KL * WEIGHT,
    "natural_bce": formulas.boosted_cross_entropy(Y, NATURAL) + BETA * KL * WEIGHT,
    "kl_attack": BCE + BETA * KL * WEIGHT,
}


def network():
    return linear_network(WEIGHTS, np.zeros(CLASSES), shape=SHAPE)


def build(method, **arguments):
    return method(network(), ATTACK, seed=0, **{"beta": BETA, **arguments})


@pytest.fixture
def split(tmp_path):
    data.write(tmp_path / "chosen.npz", chosen=np.array(CHOSEN))
    path = str(tmp_path / "chosen.npz")
    return lambda treatment: build(Split, treatment=treatment, chosen=path, num_examples=NUM_EXAMPLES)


def test_every_alteration_has_a_formula():
    assert EXPECTED.keys() == set(ALTERATIONS)


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_altered_loss_and_objective(alteration):
    model = build(Altered, alteration=alteration)
    np.testing.assert_allclose(model.training_loss(Y, OUTPUTS), EXPECTED[alteration], rtol=1e-5)
    natural, moved = (images.reshape(EXAMPLES, -1) @ WEIGHTS for images in (X, X + EPSILON))
    climbed = formulas.cross_entropy(Y, moved)
    if alteration == "kl_attack":
        climbed = formulas.kl_divergence(natural, moved)
    found = model.attack_objective(X, Y)(keras.ops.convert_to_tensor(X + EPSILON))
    np.testing.assert_allclose(found, climbed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_split_attacks_only_the_chosen_differently(treatment, split):
    x = keras.ops.convert_to_tensor(X)
    found, epsilon = split(treatment).perturb(x, Y, SEED, INDEX)
    usual, _ = km.AT(network(), ATTACK, seed=0).perturb(x, Y, SEED)
    np.testing.assert_array_equal(found[~IS_CHOSEN], usual[~IS_CHOSEN])
    assert epsilon == EPSILON
    expected = {"natural": X, "fgsm": _one_step(), "regularised": np.asarray(usual)}[treatment]
    np.testing.assert_allclose(found[IS_CHOSEN], expected[IS_CHOSEN], atol=1e-6)
    assert not np.allclose(_one_step(), usual, atol=1e-3)


def _one_step():
    """Returns X + epsilon * sign of the cross-entropy's gradient, for a linear network."""
    gradient = (formulas.softmax(X.reshape(EXAMPLES, -1) @ WEIGHTS) - np.eye(CLASSES)[Y]) @ WEIGHTS.T
    return X + EPSILON * np.sign(gradient).reshape(X.shape)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_split_regularises_only_the_chosen(treatment, split):
    model = split(treatment)
    added = BETA * IS_CHOSEN * KL * (treatment == "regularised")
    expected = formulas.cross_entropy(Y, ADVERSARIAL) + added
    np.testing.assert_allclose(model.training_loss(Y, OUTPUTS), expected, rtol=1e-5)
    in_validation = model.training_loss(Y, OUTPUTS._replace(index=None))
    np.testing.assert_allclose(in_validation, formulas.cross_entropy(Y, ADVERSARIAL), rtol=1e-5)
    assert model.trains_on_natural == (treatment == "regularised")


def test_partial_lies_between_the_first_term_and_mart():
    everyone = OUTPUTS._replace(index=np.arange(EXAMPLES))
    whole = formulas.mart(Y, NATURAL, ADVERSARIAL, BETA)
    counted = []
    for share in (0, 0.25, 0.5, 1):
        model = build(Partial, share=share, num_examples=EXAMPLES)
        found = np.asarray(model.training_loss(Y, everyone))
        has_second = np.isclose(found, whole, rtol=1e-5)
        np.testing.assert_allclose(found, np.where(has_second, whole, BCE), rtol=1e-5)
        counted.append(has_second)
    assert [each.sum() for each in counted] == [0, 2, 4, 8]
    assert (counted[1] <= counted[2]).all()  # a larger share contains a smaller one
    last = build(Partial, share=0.5, num_examples=EXAMPLES)
    np.testing.assert_allclose(last.training_loss(Y, OUTPUTS._replace(index=None)), whole, rtol=1e-5)
    turned = np.asarray(last.training_loss(Y, OUTPUTS._replace(index=np.arange(EXAMPLES)[::-1].copy())))
    np.testing.assert_array_equal(np.isclose(turned, whole, rtol=1e-5), counted[2][::-1])


@pytest.mark.parametrize("name", ["split", "altered", "partial"])
def test_own_methods_are_saved_with_their_arguments(name, split, tmp_path):
    model = {
        "split": lambda: split("fgsm"),
        "altered": lambda: build(Altered, alteration="no_kl"),
        "partial": lambda: build(Partial, share=0.25, num_examples=NUM_EXAMPLES),
    }[name]()
    model.compile("sgd")
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert type(loaded) is type(model)
    configs = [{key: value for key, value in each.get_config().items() if key != "network"} for each in (model, loaded)]
    assert configs[0] == configs[1] and configs[0]["beta"] == BETA
    np.testing.assert_array_equal(loaded.training_loss(Y, OUTPUTS), model.training_loss(Y, OUTPUTS))


# --- smaller training sets ---


@pytest.fixture
def numbered(tmp_path):
    """A dataset in which all pixels of an image equal its number, and its label is the number modulo 3."""
    counts = {"train": 40, "test": 12}
    arrays = {f"x_{split}": np.ones([count, 2, 2], "uint8") for split, count in counts.items()}
    arrays = {name: each * np.arange(len(each), dtype="uint8")[:, None, None] for name, each in arrays.items()}
    np.savez(tmp_path / "numbers.npz", **arrays, **{f"y_{split}": np.arange(n) % 3 for split, n in counts.items()})
    return f"npz:{tmp_path / 'numbers.npz'}"


def numbers(images):
    return np.asarray(images)[:, 0, 0].ravel().tolist()


def test_training_images_end_with_the_validation_images(numbered):
    (images, labels), (test_images, _) = data.training_and_test(numbered)
    assert sorted(numbers(images)) == list(range(40)) and numbers(test_images) == list(range(12))
    assert numbers(images[:36]) == sorted(numbers(images[:36]))
    validation = km.datasets.load(numbered, "validation", batch_size=4)
    assert numbers(images[36:]) == [round(255 * each) for each in numbers(next(iter(validation))[0])]
    assert (labels == np.array(numbers(images)) % 3).all()


def test_a_subset_has_the_first_images_in_order_and_the_whole_test_set(numbered, tmp_path):
    name = data.subset(numbered, 10, tmp_path)
    assert name.startswith(f"npz:{tmp_path / 'data' / 'numbers-10-'}")
    everything = numbers(data.training_and_test(numbered)[0][0])
    with np.load(name.removeprefix("npz:")) as file:
        assert numbers(file["x_train"]) == everything[:10] and numbers(file["x_test"]) == list(range(12))
        assert file["y_train"].tolist() == [each % 3 for each in everything[:10]]
    assert km.datasets.describe(name).num_examples == {"train": 9, "validation": 1, "test": 12}
    assert data.subset(numbered, 0, tmp_path) == numbered
    assert data.subset(numbered, 10, tmp_path) == name != data.subset(numbered, 10, tmp_path, classes=2)
    with pytest.raises(ValueError, match=r"--train_examples must be at most 40\. Received: 41"):
        data.subset(numbered, 41, tmp_path)


def test_a_subset_may_be_of_the_first_classes_only(numbered, tmp_path):
    everything = numbers(data.training_and_test(numbered)[0][0])
    with np.load(data.subset(numbered, 10, tmp_path, classes=2).removeprefix("npz:")) as file:
        assert numbers(file["x_train"]) == [each for each in everything if each % 3 < 2][:10]
        assert numbers(file["x_test"]) == [0, 1, 3, 4, 6, 7, 9, 10] and set(file["y_test"]) == {0, 1}


def test_the_sets_of_figure_1_are_the_misclassified_and_as_many_others(numbered, tmp_path):
    always_0 = linear_network(np.zeros([4, 3]), np.array([1.0, 0.0, 0.0]), shape=SHAPE)
    directory = Directory(tmp_path / "at-0")
    directory.path.mkdir(parents=True)
    model = km.AT(always_0, ATTACK)
    model.compile("sgd")
    model.save(directory.last)
    found = figure1.split(directory, numbered)
    batch = next(iter(km.datasets.load(numbered, "train", batch_size=36, with_index=True)))
    (_, index), labels = keras.tree.map_structure(np.asarray, batch)
    labels = labels[np.argsort(index)]  # in the order of the examples' indices
    wrong, correct = (np.load(directory.path / f"{name}.npz")["chosen"] for name in ("misclassified", "correct"))
    assert correct.tolist() == np.flatnonzero(labels == 0).tolist()
    assert len(set(wrong)) == len(wrong) == len(correct) and (labels[wrong] > 0).all()
    counts = {"misclassified": np.bincount(labels[wrong]).tolist(), "correct": [len(correct), 0, 0]}
    assert found == {"training examples": 36, "misclassified": 36 - len(correct), "of each class": counts}
