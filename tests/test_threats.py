"""The balls: projection, sampling and ascent, tested by their properties."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import images_and_labels

from keras_mart.threats import L2, Linf

EPSILON, STEP, ROUNDING = 0.2, 0.05, 1e-6
# Few dimensions, so that the statistics of uniform samples are sharp; around an image away from 0 and 1.
SAMPLES, DIMENSIONS = 20_000, 3
both = pytest.mark.parametrize("threat", [Linf(EPSILON), L2(EPSILON)], ids=repr)


@pytest.fixture
def images():
    images, _ = images_and_labels(16, (4, 4, 1))
    images[0], images[1] = 0, 1  # corners of [0, 1]
    return tf.constant(images)


@pytest.fixture
def candidates(images):
    """Points from inside the ball to far away, in all directions."""
    offsets = np.random.default_rng(1).normal(size=images.shape) * np.logspace(-3, 2, 16).reshape(-1, 1, 1, 1)
    return images + offsets.astype("float32")


def grey(count=SAMPLES, dimensions=DIMENSIONS):
    return tf.fill([count, dimensions], 0.5)


def assert_inside(threat, candidates, images, epsilon=EPSILON):
    assert np.all(threat.distance(candidates, images) <= epsilon + ROUNDING)
    assert np.min(candidates) >= 0 and np.max(candidates) <= 1


# --- project ---


@both
def test_project_is_inside_and_idempotent(threat, images, candidates):
    projected = threat.project(candidates, images)
    assert_inside(threat, projected, images)
    np.testing.assert_allclose(threat.project(projected, images), projected, atol=ROUNDING)


@both
def test_project_moves_no_further_than_it_must(threat):
    inside, outside = grey(4) + 0.1 * EPSILON, grey(4) + tf.constant([0.0, 0.3, -0.4])
    np.testing.assert_allclose(threat.project(inside, grey(4)), inside, atol=ROUNDING)
    # Outside: Linf clips each value, L2 shortens the offset (0, 0.3, -0.4) of length 0.5 to 0.2.
    nearest = {Linf: [0.5, 0.7, 0.3], L2: [0.5, 0.62, 0.34]}[type(threat)]
    np.testing.assert_allclose(threat.project(outside, grey(4)), [nearest] * 4, atol=ROUNDING)


def test_distance():
    moved = grey(2) + tf.constant([[0.0, 0.3, -0.4], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(Linf(1.0).distance(moved, grey(2)), [0.4, 0.0], atol=ROUNDING)
    np.testing.assert_allclose(L2(1.0).distance(moved, grey(2)), [0.5, 0.0], atol=ROUNDING)


@both
@pytest.mark.parametrize("method", ["project", "sample", "sample_boundary"])
def test_scalar_epsilon_equals_one_per_example(method, threat, images, candidates):
    def points(epsilon):
        arguments = (candidates, images) if method == "project" else (images, [1, 2])
        return getattr(threat, method)(*arguments, epsilon)

    np.testing.assert_array_equal(points(EPSILON), points(None))
    np.testing.assert_array_equal(points(np.full(16, EPSILON, "float32")), points(None))
    different = np.linspace(0, 1, 16, dtype="float32")
    each = [points(float(epsilon))[number] for number, epsilon in enumerate(different)]
    np.testing.assert_allclose(points(different), each, atol=ROUNDING)
    distance = threat.distance(points(different), images)
    assert np.all(distance <= different + ROUNDING) and np.all(distance[-3:] > EPSILON)


@pytest.mark.parametrize("threat", [Linf(0), L2(0)], ids=repr)
def test_epsilon_zero_leaves_the_image(threat, images, candidates):
    np.testing.assert_array_equal(threat.project(candidates, images), images)
    np.testing.assert_array_equal(threat.sample(images, [1, 2]), images)
    np.testing.assert_array_equal(threat.sample_boundary(images, [1, 2]), images)


# --- sample ---


@both
def test_sample_is_inside_and_seeded(threat, images):
    sample = threat.sample(images, [1, 2])
    assert_inside(threat, sample, images)
    np.testing.assert_array_equal(threat.sample(images, [1, 2]), sample)
    for seed in ([1, 3], [2, 2]):
        assert np.abs(threat.sample(images, seed) - sample).max() > 0.1 * EPSILON


def test_linf_sample_is_uniform():
    unit = (Linf(EPSILON).sample(grey(), [1, 2]) - 0.5) / EPSILON  # uniform in [-1, 1]^d: mean 0, variance 1/3
    np.testing.assert_allclose(np.mean(unit, axis=0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(unit, rowvar=False), np.eye(DIMENSIONS) / 3, atol=0.01)
    assert np.abs(unit).max() > 0.999


def test_l2_sample_is_uniform():
    unit = np.asarray(L2(EPSILON).sample(grey(), [1, 2]) - 0.5) / EPSILON
    radius = np.linalg.norm(unit, axis=1)
    # radius^d is uniform in [0, 1]: mean 1/2 and variance 1/12; the radius has mean d / (d + 1).
    np.testing.assert_allclose(np.mean(radius), DIMENSIONS / (DIMENSIONS + 1), atol=0.005)
    np.testing.assert_allclose(np.mean(radius**DIMENSIONS), 1 / 2, atol=0.01)
    np.testing.assert_allclose(np.var(radius**DIMENSIONS), 1 / 12, atol=0.005)
    np.testing.assert_allclose(np.mean(unit, axis=0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(unit, rowvar=False), np.eye(DIMENSIONS) / (DIMENSIONS + 2), atol=0.01)
    # No direction is preferred: on a sphere in three dimensions each coordinate is uniform in [-1, 1] (Archimedes).
    np.testing.assert_allclose(np.mean((unit / radius[:, None]) ** 4, axis=0), 1 / 5, atol=0.006)


# --- sample_boundary ---


@both
def test_the_boundary_is_at_the_full_distance(threat, images):
    points = threat.sample_boundary(grey(100), [1, 2])
    np.testing.assert_allclose(threat.distance(points, grey(100)), EPSILON, rtol=1e-5)
    np.testing.assert_array_equal(threat.sample_boundary(grey(100), [1, 2]), points)
    assert np.abs(threat.sample_boundary(grey(100), [1, 3]) - points).max() > 0.1 * EPSILON
    assert np.linalg.norm(np.mean(points - 0.5, axis=0)) < EPSILON / 3  # in all directions
    assert len(np.unique(np.abs(points - 0.5))) > 100  # not only to the corners
    assert_inside(threat, threat.sample_boundary(images, [1, 2]), images)  # also where [0, 1] cuts the ball


# --- ascend ---


def test_linf_ascends_along_the_sign():
    gradient = tf.constant([[1e-20, -3.0, 0.0], [5.0, 0.1, -1e-9]])
    moved = Linf(EPSILON).ascend(grey(2), gradient, STEP, seed=[1, 2])
    np.testing.assert_allclose(moved, 0.5 + STEP * np.sign(gradient), atol=ROUNDING)


@pytest.mark.parametrize("size", [1e-36, 1e-29, 1e-20, 1.0, 1e20, 1e30])
def test_l2_moves_exactly_step_size_along_the_gradient(size):
    direction = np.array([[0.0, 0.6, -0.8], [1.0, 0.0, 0.0]])
    moved = L2(EPSILON).ascend(grey(2), tf.constant(size * direction, "float32"), STEP)
    np.testing.assert_allclose(moved, 0.5 + STEP * direction, atol=ROUNDING)


@both
def test_one_step_size_per_example(threat):
    steps = np.array([0.0, 0.01, 0.05], "float32")
    moved = threat.ascend(grey(3), tf.constant([[0.0, 3.0, 0.0]] * 3), steps)
    np.testing.assert_allclose(moved, 0.5 + np.outer(steps, [0, 1, 0]), atol=ROUNDING)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-36])
def test_l2_without_a_gradient_moves_in_a_random_direction(size):
    threat, gradient = L2(EPSILON), tf.fill([100, DIMENSIONS], size)
    moved = threat.ascend(grey(100), gradient, STEP, seed=[1, 2])
    np.testing.assert_allclose(threat.distance(moved, grey(100)), STEP, atol=ROUNDING)
    if size < 1e-37:  # smaller gradients count as zero
        assert np.linalg.norm(np.mean(moved - 0.5, axis=0)) < STEP / 3
        assert np.abs(threat.ascend(grey(100), gradient, STEP, seed=[3, 4]) - moved).max() > STEP / 10
        np.testing.assert_allclose(threat.ascend(grey(100), gradient, STEP), grey(100), atol=ROUNDING)


# --- values ---


def test_equal_by_value():
    assert Linf(0.1) == Linf(0.1) and hash(Linf(0.1)) == hash(Linf(0.1))
    assert Linf(0.1) != Linf(0.2) and Linf(0.1) != L2(0.1)
    assert [repr(Linf(0.1)), repr(L2(0.5))] == ["Linf(epsilon=0.1)", "L2(epsilon=0.5)"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Linf(0.1).epsilon = 0.2


@both
def test_serialisation(threat):
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(threat)) == threat


@pytest.mark.parametrize("threat", [Linf, L2])
@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_epsilon_must_be_a_radius(threat, epsilon):
    with pytest.raises(ValueError, match=rf"`epsilon` must be finite and not negative\. Received: epsilon={epsilon}"):
        threat(epsilon)
