"""keras_mart.watch: lost workers, in processes without TensorFlow and with short timeouts."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import keras_mart
from keras_mart import watch

WORKER = """
import os, signal, sys, time, types
package = types.ModuleType("keras_mart")  # imports only watch.py: importing TensorFlow takes seconds
package.__path__ = [sys.argv[1]]
sys.modules["keras_mart"] = package
from keras_mart import watch
watch.START_TIMEOUT, watch.HANG_TIMEOUT, watch.FAILURE_TIMEOUT = 3.0, 2.0, 1.0
watch.HEARTBEAT, watch.GRACE_PERIOD = 0.3, 0.3
me, addresses = int(sys.argv[2]), sys.argv[3].split(",")
class UnavailableError(Exception):
    pass
"""
CONNECT = "watch.start(addresses, me)\nprint('connected', flush=True)\n"


class Cluster:
    def __init__(self, workers):
        sockets = [socket.socket() for _ in range(workers)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        self.addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
        for each in sockets:
            each.close()
        self.processes = {}

    def start(self, index, program):
        package = os.path.dirname(keras_mart.__file__)
        command = [sys.executable, "-c", WORKER + program, package, str(index), ",".join(self.addresses)]
        pipe = subprocess.PIPE
        self.processes[index] = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        return self.processes[index]

    def run(self, program, workers=None):
        """Starts the program on all workers; returns once all have connected."""
        for index in range(len(self.addresses)):
            self.start(index, CONNECT + program)
        for process in self.processes.values():
            assert process.stdout.readline() == "connected\n"

    def end(self, index):
        """Waits for a worker; returns (status, stderr)."""
        _, err = self.processes[index].communicate(timeout=20)
        return self.processes[index].returncode, err


@pytest.fixture
def cluster():
    clusters = []

    def make(workers):
        clusters.append(Cluster(workers))
        return clusters[-1]

    yield make
    for each in clusters:
        for process in each.processes.values():
            process.kill()
            process.communicate()


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, "died or was killed"), (signal.SIGSTOP, "hangs: no sign of life")]
)
def test_all_others_stop_and_name_the_lost_worker(victim, number, how, cluster):
    workers = cluster(3)
    workers.run("time.sleep(60)")
    workers.processes[victim].send_signal(number)
    for other in {0, 1, 2} - {victim}:
        status, err = workers.end(other)
        assert status == watch.WORKER_LOST
        assert f"worker {victim} ({workers.addresses[victim]}) {how}" in err
        assert f"This is worker {other}" in err


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 0.5])
def test_a_failure_is_forwarded_with_its_reason(victim, after, cluster):
    workers = cluster(3)
    fails = f"\n    time.sleep({after})\n    raise ValueError('no more disk')"
    for index in range(3):
        workers.start(index, f"{CONNECT}if me == {victim}:{fails}\ntime.sleep(60)")
    for other in {0, 1, 2} - {victim}:
        status, err = workers.end(other)
        assert status == watch.WORKER_LOST
        assert f"worker {victim} ({workers.addresses[victim]}) failed: no more disk" in err
    assert workers.end(victim)[0] == 1


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_ends_at_different_times_are_no_loss(first, cluster):
    workers = cluster(3)
    workers.run(f"time.sleep(0 if me == {first} else 3)\nsys.exit(3 if me == {first} else 0)")
    assert [workers.end(index)[0] for index in range(3)] == [3 if index == first else 0 for index in range(3)]


def test_the_end_of_a_worker_is_passed_on_once(cluster):
    workers = cluster(3)
    workers.run("if me == 2: sys.exit(0)\ntime.sleep(1)\nprint(watch._watch.ended.count(2))")
    assert [workers.processes[index].communicate(timeout=20)[0] for index in range(2)] == ["1\n", "1\n"]


def test_a_busy_worker_is_no_loss(cluster):
    workers = cluster(2)
    workers.run("end = time.monotonic() + 3\nwhile time.monotonic() < end: sum(range(1000))")
    assert [workers.end(index)[0] for index in range(2)] == [0, 0]


def test_an_error_of_a_collective_operation_waits_for_the_loss(cluster):
    workers = cluster(2)
    workers.run("if me: sys.exit(0)\ntime.sleep(0.3)\nraise UnavailableError('something went away')")
    status, err = workers.end(0)
    assert status == watch.WORKER_LOST
    assert f"worker 1 ({workers.addresses[1]}) ended before this one" in err


def test_an_error_without_a_loss_remains(cluster):
    workers = cluster(2)
    workers.run("if me: time.sleep(4)\nelse: raise UnavailableError('something else')")
    status, err = workers.end(0)
    assert status == 1
    assert "something else" in err


@pytest.mark.parametrize("absent", [0, 1])
def test_a_worker_that_does_not_connect_is_named(absent, cluster):
    workers = cluster(3)
    others = {0, 1, 2} - {absent}
    for other in others:
        workers.start(other, "try: watch.start(addresses, me)\nexcept watch.WorkerLost as error: sys.exit(str(error))")
    for other in others:
        status, err = workers.end(other)
        assert status == 1
        assert f"worker {absent} ({workers.addresses[absent]}) " in err
        assert ("did not connect" if absent else "could not be reached") in err


@pytest.mark.parametrize("last", [0, 1])
def test_a_late_start_is_waited_for(last, cluster):
    workers = cluster(2)
    workers.start(1 - last, CONNECT)
    time.sleep(0.8)
    workers.start(last, CONNECT)
    assert [workers.end(index)[0] for index in range(2)] == [0, 0]


def test_the_port_is_free_again_for_tensorflow(cluster):
    workers = cluster(2)
    workers.run(
        "import socket\nif me == 0: socket.create_server(('', watch.split(addresses[0])[1])).close()\ntime.sleep(0.3)"
    )
    assert [workers.end(index)[0] for index in range(2)] == [0, 0]


def test_other_clients_are_rejected(cluster):
    workers = cluster(2)
    workers.start(0, CONNECT)
    host, port = watch.split(workers.addresses[0])
    for _ in range(50):
        try:
            stranger = socket.create_connection((host, port))
            break
        except OSError:
            time.sleep(0.1)
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    workers.start(1, CONNECT)
    assert [workers.end(index)[0] for index in range(2)] == [0, 0]
    stranger.close()


def test_two_processes_with_one_index(cluster):
    workers = cluster(3)
    twin = "try: watch.start(addresses, 1)\nexcept watch.WorkerLost as error: sys.exit(str(error))"
    workers.start(0, CONNECT)
    workers.start(1, twin)
    time.sleep(1)
    workers.start(2, twin)
    assert "was started twice" in workers.end(1)[1]


def test_a_port_in_use_is_reported(cluster):
    workers = cluster(2)
    for index in range(2):
        with socket.create_server(watch.split(workers.addresses[index])):
            workers.start(index, CONNECT)
            status, err = workers.end(index)
        assert status == 1
        assert f"Received: {workers.addresses[index]}, Address already in use" in err


def test_addresses():
    assert watch.split("host.example:2222") == ("host.example", 2222)
    assert watch.split("[::1]:2222") == ("::1", 2222)
