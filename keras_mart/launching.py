"""Workers on this machine: several processes of one program, started, heard and stopped together."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from keras_mart import checks, watch

STOPPING = 30.0  # seconds for workers to end by themselves after one failed, before they are killed
# Run in the worker before the command: where the launcher dies, whatever it dies of, Linux kills the worker.
TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and so would the command
if os.getppid() != int(sys.argv[1]):
    sys.exit("The launcher has died.")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def launch(command, workers, *, stopping=STOPPING):
    """Runs a program as several workers of a cluster on this machine, until all have ended.

    Each gets a TF_CONFIG with its own free port on 127.0.0.1, and its part of the processor's cores as
    TF_NUM_INTRAOP_THREADS (at least one; what the environment says goes first). Every line they print comes out with
    the worker's number in front, "[0] ...". Where one fails, the others are stopped: SIGTERM, after `stopping` seconds
    SIGKILL. SIGTERM and the first Ctrl-C are passed on to the workers, which may end by themselves; a second Ctrl-C
    kills them. Where the launcher itself is killed, Linux kills them too.

    Args:
        command: the program and its arguments, a list of strings.
        workers: how many processes.
        stopping: seconds.

    Returns:
        The exit status: 0 where all ended with 0, else that of the worker which failed first, 128 and the signal's
        number where a signal killed it.

    Raises:
        ValueError: no workers.
    """
    checks.positive_integer(workers, "workers")
    environments = _environments(workers)
    lock = threading.Lock()
    received = []
    with _signals(received):
        processes = [_start(command, environment) for environment in environments]
        hearing = [
            threading.Thread(target=_repeat, args=(f"[{index}] ".encode(), source, target, lock), daemon=True)
            for index, process in enumerate(processes)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for thread in hearing:
            thread.start()
        try:
            ended = _wait(processes, received, stopping)
        finally:
            _send(processes, signal.SIGKILL)
        for thread in hearing:
            thread.join(5)  # a grandchild might hold the pipe open
    return _verdict(ended, bool(received))


def _environments(workers):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // workers)
    return [
        {
            "PYTHONUNBUFFERED": "1",
            "TF_NUM_INTRAOP_THREADS": str(threads),
            **os.environ,
            "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}),
        }
        for index in range(workers)
    ]


def _start(command, environment):
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *map(str, command)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C comes through the launcher alone
    )


def _repeat(prefix, source, target, lock):
    """Copies whole lines, so that those of several workers never mix."""
    for line in source:
        with lock, contextlib.suppress(OSError, ValueError):  # nobody reads any more: the worker must not block
            target.write((prefix + line.removesuffix(b"\n")).decode(errors="replace") + "\n")
            target.flush()


def _wait(processes, received, stopping):
    """Waits for all to end, passing signals on; returns [(worker, return code)] in the order in which they ended."""
    ended, passed, deadline = [], 0, None
    while len(ended) < len(processes):
        known = {index for index, _ in ended}
        for index, process in enumerate(processes):
            if index not in known and process.poll() is not None:
                ended.append((index, process.returncode))
                if process.returncode and deadline is None and not received:
                    _send(processes, signal.SIGTERM)
                    deadline = time.monotonic() + stopping
        while passed < len(received):
            again = received[passed] == signal.SIGINT and signal.SIGINT in received[:passed]
            _send(processes, signal.SIGKILL if again else received[passed])
            passed += 1
        if deadline is not None and time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(0.05)
    return ended


def _send(processes, number):
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # a worker's own children too


def _verdict(ended, asked):
    failed = [(index, code) for index, code in ended if code]
    if not failed:
        return 0
    # A worker that stopped because it lost another may end before that one.
    causes = [each for each in failed if each[1] not in (watch.WORKER_LOST, -signal.SIGTERM, -signal.SIGKILL)]
    index, code = failed[0] if failed[0][1] != watch.WORKER_LOST else (causes or failed)[0]
    if not asked:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit status {code}"
        print(f"keras_mart: worker {index} {how}; the others were stopped.", file=sys.stderr, flush=True)
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _signals(received):
    """Collects SIGTERM and SIGINT meanwhile, where this is the main thread, which alone may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
