"""FMN against the exact answer on linear networks, and what one run of it gives."""

import dataclasses

import numpy as np
import pytest
from test_autoattack import both, exact_distance, linear_case

import keras_mart as km


def distances(attack, network, images, labels):
    widest = dataclasses.replace(attack, threat=attack.threat.widest(images.shape))
    return np.asarray(attack.threat.distance(widest(network, images, labels), images))


@pytest.mark.parametrize("interior", [True, False], ids=["interior", "walls"])
@both
def test_finds_the_nearest_adversarial_image(norm, interior):
    network, images, labels = linear_case(2, interior)
    expected = exact_distance(norm(0), network, images, labels)
    found = distances(km.FMN(norm(0.1)), network, images, labels)
    assert np.sum(expected == 0) == 2
    np.testing.assert_array_equal(found[expected == 0], 0)
    # The box cuts the L2 ball: there the last steps are still on their way along the walls.
    most = 1.005 if norm is km.L2 and not interior else 1.0003
    assert np.all(found >= (1 - 1e-4) * expected) and np.all(found <= most * expected)


@both
def test_is_nearer_than_fab_where_there_are_several_classes(norm):
    network, images, labels = linear_case(4, False)
    fab = km.FABT(norm(0.1).widest(images.shape), 100)(network, images, labels)
    fab = np.asarray(norm(0).distance(fab, images))
    found = distances(km.FMN(norm(0.1)), network, images, labels)
    assert np.all(found <= 1.001 * fab) and np.mean(found) < np.mean(fab)


@both
def test_epsilon_decides_what_counts_and_not_what_is_found(norm):
    network, images, labels = linear_case(4, True)
    attack = km.FMN(norm(0.1), 20)
    every = distances(attack, network, images, labels)
    epsilon = float(np.median(every[every > 0]))
    small = np.asarray(norm(0).distance(km.FMN(norm(epsilon), 20)(network, images, labels), images))
    within = every <= epsilon
    assert 0 < np.sum(within[every > 0]) < len(every) - 2
    np.testing.assert_array_equal(small, np.where(within, every, 0))  # the others stay natural images
    table = km.evaluate(network, (images, labels), {"fmn": km.FMN(norm(epsilon), 20)}, verbose=0)
    np.testing.assert_allclose(table.distances["fmn"], every, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(table.outcomes["fmn"], ~within)
    assert table.gradients["fmn"] == 20 * (len(images) - 2)


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match=r"`steps` must be a positive integer. Received: steps=0"):
        km.FMN(km.Linf(0.1), 0)
