"""Checks that one process, two devices and several workers compute the same losses, metrics, weights and tables."""

import pathlib
import subprocess
import sys

import agreement
import numpy as np
import pytest
import tensorflow as tf
from agreement import CASES

from keras_mart.launching import launch

PROGRAM = pathlib.Path(__file__).with_name("agreement.py")
# Relative to the largest value of an array, at least 0.1: a bias before BatchNormalization is only rounding error.
TOLERANCE = 1e-5


def run(out, strategy, cases, workers=1):
    """Returns each worker's results as dictionaries of arrays."""
    command = [sys.executable, str(PROGRAM), str(out), strategy, *cases]
    status = launch(command, workers) if workers > 1 else subprocess.run(command, check=False).returncode
    assert status == 0
    return [dict(np.load(f"{out}-{index}.npz")) for index in range(workers)]


def differences(one, other):
    """Returns {case: largest relative difference between the results of two runs}."""
    assert one.keys() == other.keys()
    found = {}
    for key, value in one.items():
        case = key.split("/")[0]
        if "/table/" in key:
            np.testing.assert_array_equal(value, other[key], err_msg=key)
        else:
            difference = np.abs(value - other[key]).max() / max(np.abs(value).max(), 0.1)
            found[case] = max(found.get(case, 0.0), float(difference))
    return found


def check(expected, got):
    """Prints the differences and checks that they are within the tolerance."""
    for other in got[1:]:
        assert all(np.array_equal(value, other[key]) for key, value in got[0].items()), "workers differ"
    found = differences(expected, got[0])
    print({case: f"{difference:.1e}" for case, difference in found.items()})
    assert all(difference < TOLERANCE for difference in found.values()), found


def test_two_workers_agree_with_one_process(tmp_path, monkeypatch):
    agreement.replace_random_numbers(monkeypatch.setattr)
    expected = agreement.run("mma", tf.distribute.get_strategy())  # MMA's margins need all workers' examples
    check({f"mma/{key}": value for key, value in expected.items()}, run(tmp_path / "two", "multiworker", ["mma"], 2))


@pytest.mark.slow
def test_every_method_on_devices_and_workers(tmp_path):
    # BatchNormalization's statistics are per part of a batch: two devices and two workers have the same parts.
    normalised = "mart-batch-norm"
    one = run(tmp_path / "one", "none", [case for case in CASES if case != normalised])[0]
    devices = run(tmp_path / "devices", "replicas", CASES)
    two = run(tmp_path / "two", "multiworker", CASES, workers=2)
    three = run(tmp_path / "three", "multiworker", [case for case in CASES if case != normalised], workers=3)

    def plain(results):
        return [{key: value for key, value in each.items() if not key.startswith(normalised)} for each in results]

    for got in (plain(devices), plain(two), three):
        check(one, got)
    check(devices[0], two)
