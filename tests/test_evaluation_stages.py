"""Evaluation stage by stage: the table does not depend on batch size, devices or interruptions; precision."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import Plain, conv_network, images_and_labels, linear_network

import keras_mart as km
from keras_mart.attacks import autoattack, square
from keras_mart.evaluation import state as states
from keras_mart.evaluation.precision import precision_of, with_precision

EXAMPLES = 13
X, Y = images_and_labels(EXAMPLES, (6, 6, 1))
LINF = km.Linf(0.07)


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch):
    """Gives AutoAttack few steps, and Square three rounds."""
    monkeypatch.setattr(square, "ROUND", 4)
    for name, options in {"apgd-ce": {"steps": 2}, "apgd-t": {"steps": 2}, "square": {"queries": 10}}.items():
        stage = autoattack.STAGES[name]
        monkeypatch.setitem(
            autoattack.STAGES, name, lambda threat, stage=stage, options=options: stage(threat, **options)
        )


def attacks(threat):
    parts = ("apgd-ce", "apgd-t", "square")
    return {"pgd": km.PGD(threat, 2), "auto": km.AutoAttack(threat, parts), "noise": km.Noise(threat, 2)}


@pytest.fixture(scope="module")
def network():
    return conv_network()


@pytest.fixture(scope="module")
def labels(network):
    """Labels such that two of the examples are misclassified."""
    predicted = np.argmax(network(X), axis=1)
    predicted[[1, 4]] = (predicted[[1, 4]] + 1) % 3
    return predicted


def evaluate(network, labels, threat=LINF, **options):
    return km.evaluate(network, (X, labels), attacks(threat), verbose=0, **options)


def same(table, other):
    """Returns whether two tables are equal, except for the seconds."""
    predictions = [{name: each.tolist() for name, each in one.predictions.items()} for one in (table, other)]
    return predictions[0] == predictions[1] and table.gradients == other.gradients


@pytest.mark.parametrize("threat", [km.Linf(0.07), km.L2(0.2)], ids=repr)
def test_the_table_does_not_depend_on_the_batch_size(threat, network, labels):
    tables = [evaluate(network, labels, threat, batch_size=size) for size in (128, 5, 1)]
    assert same(tables[0], tables[1]) and same(tables[0], tables[2])
    accuracy = tables[0].accuracy
    assert tables[0].gradients["auto/apgd-ce"] == 3 * (EXAMPLES - 2)  # misclassified examples are skipped
    assert 0 < accuracy["auto"] <= accuracy["auto/apgd-ce"] < accuracy["natural"] < 1  # each stage breaks examples


@pytest.mark.parametrize("name", ["pgd", "auto", "noise"])
def test_an_image_has_its_own_random_numbers_wherever_it_lies(name, network, labels):
    attack = attacks(LINF)[name]
    np.testing.assert_array_equal(
        attack(network, X[:5], labels[:5], seed=1), np.asarray(attack(network, X, labels, seed=1))[:5]
    )


def test_replicas_share_the_batches(two_replicas, network, labels):
    with two_replicas.scope():
        copy = conv_network()
    copy.set_weights(network.get_weights())
    for size in (128, 1):  # 13 examples do not divide evenly; one leaves a replica without any
        assert same(evaluate(copy, labels, batch_size=size), evaluate(network, labels))


def test_every_replica_works(two_replicas):
    seen = []

    class Seeing(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, images):
            seen.append(self.scale.value.device)
            return images * self.scale

    with two_replicas.scope():
        network = keras.Sequential([keras.Input(X.shape[1:]), Seeing(), conv_network()])
    images, labels = tf.constant(X), tf.constant(Y, "int32")
    seen.clear()
    km.FGSM(km.Linf(0.1))(network, images, labels)
    assert {device[-1] for device in seen} == {"0", "1"}


# --- interrupted ---


class Killed(BaseException):
    """Simulates the death of the process."""


def killed_at(monkeypatch, number):
    """Makes the evaluation die when it writes file `number`, counted from 0; returns the list of files written."""
    count, whole = [], states.files.atomic_file

    def dying(path):
        count.append(path)
        if len(count) > number:
            raise Killed
        return whole(path)

    monkeypatch.setattr(states.files, "atomic_file", dying)
    return count


def test_an_interrupted_evaluation_ends_with_the_same_table(network, labels, tmp_path, monkeypatch):
    expected = evaluate(network, labels)
    with monkeypatch.context() as patch:
        count = killed_at(patch, 10**6)
        assert same(evaluate(network, labels, state=tmp_path / "whole", batch_size=6), expected)
    assert len(count) > 25
    for number in range(0, len(count), 3):
        state = tmp_path / str(number)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, number)
            evaluate(network, labels, state=state, batch_size=6)
        assert same(evaluate(network, labels, state=state, batch_size=4), expected), number


def test_nothing_is_done_twice(network, labels, tmp_path, monkeypatch):
    table = evaluate(network, labels, state=tmp_path, batch_size=6)
    with monkeypatch.context() as patch:
        assert not killed_at(patch, 0)  # nothing is written again
        again = evaluate(network, labels, state=tmp_path)
    assert same(table, again) and again.seconds == table.seconds and again.to_json() == table.to_json()


def other_weights():
    other = conv_network()
    other.trainable_variables[0].assign_add(1e-6 * tf.ones_like(other.trainable_variables[0]))
    return other


CHANGES = {
    "architecture_sha256": lambda given: given.update(network=km.networks.on_unit_images(given["network"], scale=2)),
    "weights_sha256": lambda given: given.update(network=other_weights()),
    "data_sha256": lambda given: given.update(data=(X[:2] * 0.5, given["data"][1])),
    "attacks": lambda given: given.update(attacks=attacks(km.Linf(0.08))),
    "seed": lambda given: given.update(seed=1),
    "stop_early": lambda given: given.update(stop_early=True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_state_of_another_evaluation_is_refused(name, network, labels, tmp_path):
    given = {"network": network, "data": (X[:2], labels[:2]), "attacks": attacks(LINF), "seed": 0}
    record = km.evaluate(network, given["data"], given["attacks"], seed=0, verbose=0).record
    (tmp_path / states.ARGUMENTS).write_text(json.dumps(record))
    CHANGES[name](given)
    with pytest.raises(ValueError, match=f"remove {tmp_path} to start again. It was started with other .*{name}.*"):
        km.evaluate(given.pop("network"), given.pop("data"), given.pop("attacks"), **given, verbose=0, state=tmp_path)


def test_one_evaluation_at_a_time(network, labels, tmp_path):
    code = f"""
import fcntl, sys, time
file = open({str(tmp_path / states.LOCK)!r}, "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"Only one process at a time may work in {tmp_path}. Received: another"):
            evaluate(network, labels, state=tmp_path)
        other.kill()  # a killed process loses its lock
    evaluate(network, labels, state=tmp_path)


def test_a_callable_has_no_state(network, labels, tmp_path):
    with pytest.raises(ValueError, match=r"`state` needs `keras_mart\.Attack` objects, whose parameters"):
        km.evaluate(network, (X, labels), {"own": lambda *_, **__: X}, state=tmp_path, verbose=0)


# --- precision ---


def half(policy="mixed_bfloat16"):
    keras.config.set_dtype_policy(policy)
    try:
        return conv_network()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_a_network_of_lower_precision_is_evaluated_in_float32(policy, network, labels):
    lower, pgd = half(policy), {"pgd": km.PGD(LINF, 2)}
    lower.set_weights(network.get_weights())
    assert precision_of(lower) == policy.removeprefix("mixed_")
    table = km.evaluate(lower, (X, labels), pgd, verbose=0)
    assert table.record["precision"] == "float32" and with_precision(lower, None) is lower
    if policy.startswith("mixed"):  # the weights are float32
        assert same(table, km.evaluate(network, (X, labels), pgd, verbose=0))
    unchanged = km.evaluate(lower, (X, labels), pgd, verbose=0, precision=None)
    assert unchanged.record["precision"] == policy.removeprefix("mixed_")


def test_the_copy_follows_the_weights():
    lower = half()
    copy = with_precision(lower, "float32")
    for weight in lower.weights:
        weight.assign(0.5 * tf.ones_like(weight))
    assert with_precision(lower, "float32") is copy
    np.testing.assert_array_equal(copy.get_weights()[0], lower.get_weights()[0])
    assert np.asarray(copy(X)).dtype == "float32" and with_precision(copy, "float32") is copy


def test_the_copy_does_not_depend_on_the_global_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(3)])
        assert km.evaluate(network, (X, Y), {}, verbose=0).record["precision"] == "float32"
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_network_that_cannot_be_copied():
    keras.config.set_dtype_policy("mixed_bfloat16")
    plain = Plain()
    keras.config.set_dtype_policy("float32")
    plain(X)
    with pytest.raises(ValueError, match=r"evaluated through a float32 copy, .*`precision=None` evaluates it as it is"):
        km.evaluate(plain, (X, Y), {}, verbose=0)
    assert km.evaluate(plain, (X, Y), {}, verbose=0, precision=None).examples == EXAMPLES
    with pytest.raises(ValueError, match=r"`precision` must be one of float32, None. Received: 'bfloat16'"):
        km.evaluate(plain, (X, Y), {}, precision="bfloat16")


# --- attacks that look for the nearest adversarial image ---


@dataclasses.dataclass(frozen=True)
class Walking(km.Attack):
    """Finds the nearest image of the other class, which for images of one value lies just beyond 0.5."""

    minimises = True
    gradients = 3

    def perturb(self, logits, images, labels, seed):
        found = tf.where(images < 0.5, 0.5001, 0.4999)
        wrong = (tf.argmax(logits(images), -1, tf.int32) != labels)[:, None]
        within = self.threat.distance(found, images)[:, None] <= self.threat.epsilon
        return tf.where(wrong | ~within, images, found)


VALUES = np.array([[0.1], [0.35], [0.45], [0.9], [0.3]], "float32")
CLASSES = np.array([0, 0, 0, 1, 1])  # the last is misclassified


def test_the_nearest_images_give_accuracy_at_every_epsilon():
    threshold = linear_network([[0, 10]], [0, -5])
    walking = Walking(km.Linf(0.1))
    table = km.evaluate(threshold, (VALUES, CLASSES), {"fgsm": km.FGSM(km.Linf(0.2)), "walking": walking}, verbose=0)
    np.testing.assert_allclose(table.distances["walking"], [0.4001, 0.1501, 0.0501, 0.4001, 0], atol=1e-6)
    np.testing.assert_array_equal(table.outcomes["walking"], [1, 1, 0, 1, 0])
    assert table.gradients["walking"] == 4 * 3
    early = km.evaluate(
        threshold, (VALUES, CLASSES), {"fgsm": km.FGSM(km.Linf(0.2)), "walking": walking}, verbose=0, stop_early=True
    )
    np.testing.assert_array_equal(early.distances["walking"], table.distances["walking"])
    np.testing.assert_array_equal(early.outcomes["walking"], [1, 0, 0, 1, 0])  # under both
