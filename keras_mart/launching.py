"""Runs a program as several workers on this machine, and forwards their output and signals."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from keras_mart import checks, watch

STOPPING = 30.0  # seconds for the other workers to exit after one failed, before they are killed
# Run in the worker before the command, so that Linux kills the worker when the launcher dies for any reason.
BOOTSTRAP = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
if os.getppid() != int(sys.argv[1]):
    sys.exit("The launcher has died.")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def launch(command: Sequence[str], workers: int, *, stopping: float = STOPPING) -> int:
    """Runs a program as several workers of a cluster on this machine, and waits until all have exited.

    Each worker gets a TF_CONFIG with its own free port on 127.0.0.1, and its share of the processor's cores (at least
    one) as TF_NUM_INTRAOP_THREADS, unless the environment sets it. Every line that a worker prints is forwarded with
    the worker's number in front, "[0] ...". If one worker fails, the others are stopped: with SIGTERM, and after
    `stopping` seconds with SIGKILL. SIGTERM and the first Ctrl-C are forwarded to the workers, which may then exit by
    themselves; a second Ctrl-C kills them. If the launcher itself is killed, Linux kills the workers too.

    Args:
        command: the program and its arguments.
        workers: number of processes.
        stopping: seconds from SIGTERM to SIGKILL.

    Returns:
        The exit status: 0 if all workers exited with 0, otherwise that of the worker that failed first, which is 128
        plus the number of the signal if a signal killed it.

    Raises:
        ValueError: `workers` is not positive.
    """
    checks.positive_integer(workers, "workers")
    environments = _environments(workers)
    lock = threading.Lock()
    received: list[int] = []
    with _collect_signals(received):
        processes = [_start(command, environment) for environment in environments]
        readers = [
            threading.Thread(target=_forward_lines, args=(f"[{index}] ".encode(), source, target, lock), daemon=True)
            for index, process in enumerate(processes)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for thread in readers:
            thread.start()
        try:
            ended = _wait(processes, received, stopping)
        finally:
            _send(processes, signal.SIGKILL)
        for thread in readers:
            thread.join(5)  # a worker's own child may keep the pipe open
    return _exit_status(ended, interrupted=bool(received))


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
        [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(os.getpid()), *map(str, command)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal reaches only the launcher
    )


def _forward_lines(prefix, source, target, lock):
    """Copies whole lines, so that those of several workers never mix."""
    for line in source:
        # If the target is closed, the loop keeps reading, so that the worker does not block.
        with lock, contextlib.suppress(OSError, ValueError):
            target.write((prefix + line.removesuffix(b"\n")).decode(errors="replace") + "\n")
            target.flush()


def _wait(processes, received, stopping):
    """Waits for all workers, forwarding signals; returns [(worker, return code)] in the order in which they exited."""
    ended, forwarded, deadline = [], 0, None
    while len(ended) < len(processes):
        known = {index for index, _ in ended}
        for index, process in enumerate(processes):
            if index not in known and process.poll() is not None:
                ended.append((index, process.returncode))
                if process.returncode and deadline is None and not received:
                    _send(processes, signal.SIGTERM)
                    deadline = time.monotonic() + stopping
        while forwarded < len(received):
            again = received[forwarded] == signal.SIGINT and signal.SIGINT in received[:forwarded]
            _send(processes, signal.SIGKILL if again else received[forwarded])
            forwarded += 1
        if deadline is not None and time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(0.05)
    return ended


def _send(processes, number):
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # a worker's own children too


def _exit_status(ended, interrupted):
    failed = [(index, code) for index, code in ended if code]
    if not failed:
        return 0
    # A worker that stopped because it lost another one may have exited before that one.
    causes = [each for each in failed if each[1] not in (watch.WORKER_LOST, -signal.SIGTERM, -signal.SIGKILL)]
    index, code = failed[0] if failed[0][1] != watch.WORKER_LOST else (causes or failed)[0]
    if not interrupted:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit status {code}"
        print(f"keras_mart: worker {index} {how}; the others were stopped.", file=sys.stderr, flush=True)
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _collect_signals(received):
    """Context that collects SIGTERM and SIGINT, in the main thread, the only one that can set signal handlers."""
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
