"""keras_mart.distribution: strategies by name, clusters from TF_CONFIG and Slurm, this process's worker index."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import tensorflow as tf

from keras_mart import clusters, distribution, watch

TWO = ["10.0.0.1:2222", "10.0.0.2:2222"]


def config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in [name for name in os.environ if name == "TF_CONFIG" or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def slurm(monkeypatch):
    def step(nodes="node[1-2]", tasks="1(x2)", rank=0, job=7):
        named = {"STEP_NODELIST": nodes, "STEP_TASKS_PER_NODE": tasks, "PROCID": rank, "JOB_ID": job}
        for name, value in named.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        return clusters.from_environment()

    return step


@pytest.mark.parametrize("environment", [None, "", "{}", '{"cluster": {}}'])
def test_no_cluster(environment, monkeypatch):
    if environment is not None:
        monkeypatch.setenv("TF_CONFIG", environment)
    assert clusters.from_environment() is None
    assert distribution.strategy("auto") is tf.distribute.get_strategy()
    with pytest.raises(ValueError, match="needs a cluster"):
        distribution.strategy("multiworker")


def test_a_cluster_of_one_is_none(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config({"worker": TWO[:1]}))
    for name in ("auto", "multiworker"):
        assert distribution.strategy(name) is tf.distribute.get_strategy()


def test_the_cluster_of_tf_config(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config({"worker": TWO}, index=1))
    assert (clusters.from_environment().addresses, clusters.from_environment().index) == (TWO, 1)


@pytest.mark.parametrize(("kind", "index", "expected"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
def test_a_chief_comes_first(kind, index, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config({"worker": TWO, "chief": ["host:1"]}, kind, index))
    assert clusters.from_environment().addresses == ["host:1", *TWO]
    assert clusters.from_environment().index == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{worker", "must be JSON"),
        ("[]", 'must have "cluster"'),
        ('{"cluster": ["a:1"]}', 'must have "cluster"'),
        ('{"cluster": {"worker": "a:1"}}', 'must have "cluster"'),
        (config({"worker": TWO, "ps": ["a:1"]}), "no other job"),
        (config({"evaluator": TWO}), "no other job"),
        (config({"worker": []}), "must have workers"),
        (config({"worker": ["a:1"], "chief": TWO}, "chief"), "at most one chief"),
        (config({"worker": ["a", "b:1"]}), '"host:port"'),
        (config({"worker": ["http://a:1", "b:1"]}), '"host:port"'),
        (config({"worker": ["a:1", 2]}), '"host:port"'),
        (config({"worker": ["a:1", "a:1"]}), "different address"),
        (json.dumps({"cluster": {"worker": TWO}}), "which worker this is"),
        (config({"worker": TWO}, "chief"), "which worker this is"),
        (config({"worker": TWO}, index=2), "from 0 to 1"),
        (config({"worker": TWO}, index=-1), "from 0 to 1"),
        (config({"worker": TWO}, index="first"), "from 0 to 1"),
    ],
)
def test_invalid_tf_config(text, rule, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=f"TF_CONFIG .*{rule}.*Received"):
        distribution.strategy("auto")


@pytest.mark.parametrize(
    ("nodes", "tasks", "hosts"),
    [
        ("node1", "2", ["node1", "node1"]),
        ("node[9-11]", "1(x3)", ["node9", "node10", "node11"]),  # not in alphabetical order
        ("gpu[08-09,11],login", "1(x2),2,1", ["gpu08", "gpu09", "gpu11", "gpu11", "login"]),
        ("r[1-2]n[3-4]-ib", "1(x4)", ["r1n3-ib", "r1n4-ib", "r2n3-ib", "r2n4-ib"]),
    ],
)
def test_the_cluster_of_a_slurm_step(nodes, tasks, hosts, slurm):
    cluster = slurm(nodes, tasks, rank=1)
    assert [address.rpartition(":")[0] for address in cluster.addresses] == hosts
    assert len(set(cluster.addresses)) == len(hosts)
    assert cluster.index == 1


def test_consecutive_slurm_jobs_have_different_ports(slurm):
    assert not set(slurm("a", "64", job=41).addresses) & set(slurm("a", "64", job=42).addresses)


def test_tf_config_takes_precedence_over_slurm(slurm, monkeypatch):
    slurm()
    monkeypatch.setenv("TF_CONFIG", config({"worker": TWO}))
    assert clusters.from_environment().addresses == TWO


@pytest.mark.parametrize(
    "wrong", [{"tasks": "two"}, {"tasks": "2(x3)"}, {"rank": 2}, {"rank": "x"}, {"nodes": "node[a-b]"}]
)
def test_invalid_slurm_variables(wrong, slurm):
    with pytest.raises(ValueError, match="Slurm step"):
        slurm(**wrong)


def test_a_slurm_job_without_a_step_is_no_cluster(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert clusters.from_environment() is None


def test_a_strategy_created_too_late(monkeypatch):
    tf.constant(1.0)
    monkeypatch.setenv("TF_CONFIG", config({"worker": TWO}))
    monkeypatch.setattr(watch, "start", lambda *_: pytest.fail("waits for the other workers before the check"))
    with pytest.raises(RuntimeError, match="before TensorFlow does anything else"):
        distribution.strategy("auto")


def test_outside_a_cluster_this_is_the_chief(two_replicas):
    for strategy in (None, tf.distribute.get_strategy(), two_replicas):
        assert distribution.worker(strategy) == (0, 1)
        assert distribution.is_chief(strategy)
    with two_replicas.scope():
        assert distribution.worker() == (0, 1)
    assert distribution.describe(tf.distribute.get_strategy()) == "1 device"
    assert distribution.describe(two_replicas) == "2 devices"


WORKER = """
import os, signal, sys
from keras_mart import clusters, distribution, watch
watch.GRACE_PERIOD = 0.5
strategy = distribution.strategy("auto")
import tensorflow as tf

@tf.function
def summed(value):
    return strategy.run(lambda value: distribution.all_reduce_sum(2.0 * value), args=(value,))

index, count = distribution.worker(strategy)
with strategy.scope():
    assert distribution.worker() == (index, count) and distribution.is_chief() == (index == 0)
print(distribution.describe(strategy), float(summed(tf.constant(index + 1.0))), flush=True)
while True:
    summed(tf.constant(1.0))  # ends only once both have printed the first sum
    if index == 1: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_cluster_that_loses_a_worker():
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**os.environ, "TF_CONFIG": config({"worker": addresses}, index=index), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        (out, err), (other, _) = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [watch.WORKER_LOST, -signal.SIGKILL], err
    assert out.strip() == f"worker 0 of 2 ({addresses[0]}), 2 devices 6.0"
    assert other.strip() == f"worker 1 of 2 ({addresses[1]}), 2 devices 6.0"
    assert f"worker 1 ({addresses[1]}) died or was killed" in err
