"""keras_mart.launch: workers on one machine, replaced by tiny programs without TensorFlow."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import keras_mart as km
from keras_mart import cli, launching, watch
from keras_mart.cli.flags import FLAGS

LAUNCHER = """
import importlib.util, json, sys, types
# Imports only the launcher's files: importing TensorFlow takes seconds.
package = types.ModuleType("keras_mart")
package.__path__ = [sys.argv[1]]
sys.modules["keras_mart"] = package
sys.modules["keras_mart.checks"] = checks = types.ModuleType("keras_mart.checks")
checks.positive_integer = lambda *_: None
package.checks = checks
from keras_mart.launching import launch
sys.exit(launch([sys.executable, "-c", sys.argv[3]], int(sys.argv[2]), stopping=2))
"""
ME = 'import json, os, signal, sys, time; me = json.loads(os.environ["TF_CONFIG"])["task"]["index"]\n'


def start(program, workers=2):
    """Starts the launcher in a separate process, as a terminal would."""
    package = os.path.dirname(km.__file__)
    command = [sys.executable, "-c", LAUNCHER, package, str(workers), ME + program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def run(program, workers=2):
    """Returns (status, stdout, stderr, seconds)."""
    began = time.monotonic()
    process = start(program, workers)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.monotonic() - began


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_worker_gets_the_cluster_and_its_own_index(capfd):
    print_all = ME + 'print(os.environ["TF_CONFIG"], os.environ["TF_NUM_INTRAOP_THREADS"])'
    assert km.launch([sys.executable, "-c", print_all], 3) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    configs = [json.loads(line[4:].rpartition(" ")[0]) for line in lines]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(3)]
    (addresses,) = {tuple(config["cluster"]["worker"]) for config in configs}
    assert len(set(addresses)) == 3 and all(address.startswith("127.0.0.1:") for address in addresses)
    assert {line.rpartition(" ")[2] for line in lines} == {str(max(1, len(os.sched_getaffinity(0)) // 3))}


def test_the_environment_variable_for_threads_takes_precedence(capfd, monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")
    km.launch([sys.executable, "-c", 'import os; print(os.environ["TF_NUM_INTRAOP_THREADS"])'], 1)
    assert capfd.readouterr().out == "[0] 7\n"


def test_lines_stay_whole_and_streams_apart():
    program = """
for i in range(200):
    sys.stdout.write(f"{me}-{i} "); sys.stdout.flush()
    sys.stdout.write("x" * 50 + "\\n")
sys.stderr.write("no end of line")
"""
    status, out, err, _ = run(program)
    assert status == 0
    lines = out.splitlines()
    expected = sorted(f"[{me}] {me}-{i} {'x' * 50}" for me in range(2) for i in range(200))
    assert sorted(lines) == expected
    assert sorted(err.splitlines()) == ["[0] no end of line", "[1] no end of line"]


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        ("sys.exit(3)", 3, "worker 1 failed with exit status 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "worker 1 was killed by SIGSEGV"),
    ],
)
def test_if_one_worker_fails_the_others_are_stopped(end, status, message):
    result = run(f"time.sleep(60) if me != 1 else {end}", workers=3)
    assert result[0] == status
    assert message in result[2]
    assert result[3] < 10


def deaf(path):
    """Returns program text: both workers ignore SIGTERM before one of them can exit."""
    return f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(path)!r} + str(me), "w").close()
while not os.path.exists({str(path)!r} + str(1 - me)): time.sleep(0.02)
"""


def test_the_cause_is_named_although_a_worker_that_lost_it_exits_first(tmp_path):
    program = f"""{deaf(tmp_path / "deaf")}
if me == 0: sys.exit({watch.WORKER_LOST})
time.sleep(0.5); sys.exit(7)
"""
    status, _, err, _ = run(program)
    assert status == 7
    assert "worker 1 failed with exit status 7" in err


def test_a_worker_that_does_not_stop_is_killed(tmp_path):
    program = f"{deaf(tmp_path / 'deaf')}\ntime.sleep(0 if me else 60); sys.exit(5)"
    status, _, _, seconds = run(program)
    assert status == 5
    assert 2 < seconds < 15


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_forwarded_once_and_the_workers_exit_by_themselves(number, status):
    program = f"""
got = []
signal.signal({int(number)}, lambda *_: got.append(1))
print("ready", flush=True)
end = time.monotonic() + 20
while not got and time.monotonic() < end: time.sleep(0.05)
time.sleep(0.5)
print("saved", len(got), flush=True)
sys.exit({status})
"""
    process = start(program)
    for _ in range(2):
        assert "ready" in process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert sorted(out.splitlines()) == ["[0] saved 1", "[1] saved 1"]
    assert "failed" not in err


def test_a_second_interrupt_kills():
    program = 'signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint("ready", flush=True)\ntime.sleep(60)'
    process = start(program)
    for _ in range(2):
        assert "ready" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 137


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills the workers of a launcher that was killed")
def test_no_worker_outlives_a_killed_launcher():
    process = start('print("pid", os.getpid(), flush=True); time.sleep(60)')
    pids = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
    assert all(map(alive, pids))
    process.kill()
    process.communicate(timeout=10)
    wait_for(lambda: not any(map(alive, pids)))


def test_a_missing_program_is_reported(capfd):
    assert km.launch(["/no/such/program"], 1) == 1
    assert "/no/such/program" in capfd.readouterr().err


def test_the_number_of_workers_is_checked():
    with pytest.raises(ValueError, match="workers"):
        km.launch(["true"], 0)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command line up to the launch; returns (exit status, launched command and workers, stderr)."""
    for name in ("TF_CONFIG", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    launched = []

    def launch(*arguments):
        launched.extend(arguments)
        return 9

    def run(*arguments):
        FLAGS.unparse_flags()
        monkeypatch.setattr(sys, "argv", ["keras-mart", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.run()
        return end.value.code, launched, capsys.readouterr().err

    monkeypatch.setattr(launching, "launch", launch)
    yield run
    FLAGS.unparse_flags()


@pytest.mark.parametrize("through", ["flag", "flagfile"])
def test_the_command_line_starts_workers_that_start_none(through, command, tmp_path):
    (tmp_path / "run.cfg").write_text("--workers=3\n")
    given = ["--workers=3", "--epochs=2"] if through == "flag" else ["--flagfile=run.cfg", "--epochs=2"]
    status, (program, workers), _ = command(*given)
    assert (status, workers) == (9, 3)
    assert program == [sys.executable, "-m", "keras_mart.main", *given, "--workers=1"]


def test_a_cluster_starts_no_workers_of_its_own(command, monkeypatch):
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    status, launched, err = command("--workers=2")
    assert (status, launched) == (2, [])
    assert "a cluster of a:1, b:1" in err


def test_invalid_flags_are_reported_once_before_workers_start(command):
    status, launched, err = command("--workers=2", "--depth=10", "--network=small_cnn")
    assert (status, launched) == (2, [])
    assert "--depth applies only to" in err
