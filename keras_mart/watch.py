"""Workers that watch one another, so that when one is lost, the others report which one and stop instead of waiting.

TensorFlow aborts a collective operation ten seconds after a worker died, with an error that rarely names the worker. It
does not notify a worker that is busy with its own computation at that moment, and waits an hour for a worker that never
starts. Therefore each worker keeps one plain connection to the first worker as long as it lives. The connection is made
through the first worker's own address, before TensorFlow opens that port: no other port is needed, and all workers have
started when TensorFlow does.
"""

import atexit
import contextlib
import os
import selectors
import socket
import sys
import threading
import time

WORKER_LOST = 4  # exit status of a worker that lost another one

START_TIMEOUT = 300.0  # seconds for all workers to connect
HANG_TIMEOUT = 40.0  # seconds without a heartbeat after which a worker counts as hung
HEARTBEAT = 2.0  # seconds between heartbeats
GRACE_PERIOD = 3.0  # seconds for a process to exit by itself after another one was lost
FAILURE_TIMEOUT = 12.0  # replaces HANG_TIMEOUT once TensorFlow reports a failure, for which it waits ten seconds
HELLO = "keras_mart"
# Errors of TensorFlow's collective operations when a worker is lost.
COLLECTIVE_ERRORS = {
    "AbortedError", "CancelledError", "DeadlineExceededError", "FailedPreconditionError", "InternalError",
    "UnavailableError",
}  # fmt: skip

_watch = None


class WorkerLost(ConnectionError):
    """A worker of the cluster did not connect, failed, died or hangs."""


def start(addresses, index):
    """Waits until all workers have connected, and watches them from then on.

    If a worker is lost later, this process prints which one and why, and exits with status `WORKER_LOST`, unless it
    exits by itself within `GRACE_PERIOD` seconds. A process can watch only one cluster.

    Args:
        addresses: "host:port" of all workers, as given to TensorFlow; the first is the chief.
        index: index of this process.

    Raises:
        WorkerLost: a worker did not connect within `START_TIMEOUT` seconds.
        ValueError: the process already watches another cluster.
    """
    global _watch
    if _watch is None:
        _watch = _Watch(addresses, index)
    elif (_watch.addresses, _watch.index) != (list(addresses), index):
        raise ValueError(f"A process belongs to one cluster. Received: {addresses} after {_watch.addresses}")


def leave(failure=None):
    """Notifies the other workers that this process exits: normally, or because of `failure`, an error or a text."""
    if _watch is not None:
        _watch.leave(failure)


def exit_if_worker_lost(error):
    """Exits the process, naming the lost worker, if one is the cause of the error; otherwise returns.

    If collective operations raise errors of this type, waits some seconds for the loss to be noticed.
    """
    if _watch is not None and type(error).__name__ in COLLECTIVE_ERRORS:
        _watch.exit_if_worker_lost()


class _Link:
    """A connection to one worker, which sends and receives lines of text."""

    def __init__(self, connection):
        self.connection, self.last_received, self.incomplete = connection, time.monotonic(), b""
        connection.settimeout(HEARTBEAT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, line):
        with contextlib.suppress(OSError):  # reading notices a lost connection
            self.connection.sendall(f"{line}\n".encode())

    def read(self):
        """Returns the complete lines received, or `None` at the end of the connection."""
        try:
            data = self.connection.recv(4096)
        except TimeoutError:
            return []
        except OSError:  # closed on this side as well
            return None
        if not data:
            return None
        self.last_received = time.monotonic()
        *lines, self.incomplete = (self.incomplete + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def finish(self, deadline):
        """Waits until the other side closes: closing with unread data resets the connection and loses sent lines."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(0.2)
        while self.read() is not None and time.monotonic() < deadline:
            pass

    def wait(self, deadline):
        """Returns the first lines received before the deadline, or `None`."""
        while time.monotonic() < deadline:
            lines = self.read()
            if lines != []:
                return lines
        return None


class _Watch:
    def __init__(self, addresses, index):
        self.addresses, self.index = list(addresses), index
        self.links, self.ended = {}, []  # from workers to links: the chief has all others, the others only the chief
        self.timeout, self.leaving, self.lost = HANG_TIMEOUT, False, None
        deadline = time.monotonic() + START_TIMEOUT
        self._accept_all(deadline) if index == 0 else self._join(deadline)
        atexit.register(self._at_exit)
        threading.Thread(target=self._run, name="keras_mart.watch", daemon=True).start()

    def name(self, worker):
        return f"worker {worker} ({self.addresses[worker]})"

    def leave(self, failure=None):
        if self.leaving:
            return
        self.leaving = True
        text = " ".join(str(failure).split())[:300] or type(failure).__name__
        self._broadcast("ended" if failure is None else f"failed {text}")
        end = time.monotonic() + 1
        for link in list(self.links.values()):
            link.finish(end)
        if self.lost:  # the reason why this process fails too
            self._print_lost()

    def exit_if_worker_lost(self):
        if self.timeout == FAILURE_TIMEOUT:  # called before
            return
        self.timeout = FAILURE_TIMEOUT
        end = time.monotonic() + FAILURE_TIMEOUT + HEARTBEAT
        while self.lost is None and time.monotonic() < end:
            time.sleep(0.1)
        if self.lost is None and self.ended:
            self._lose(self.ended[0], "ended before this one")
        elif self.lost is not None:
            time.sleep(GRACE_PERIOD + HEARTBEAT)  # the other thread runs `_stop`

    def _at_exit(self):
        error = getattr(sys, "last_value", None)  # the error whose traceback Python has printed
        if error is not None:
            exit_if_worker_lost(error)
        self.leave(error)

    def _accept_all(self, deadline):
        """Accepts the others' connections, on the chief, at its own address, which TensorFlow's server uses next."""
        print_at = time.monotonic() + 10
        with _listen(self.addresses[0]) as listener:
            listener.settimeout(0.5)
            while len(self.links) < len(self.addresses) - 1:
                absent = [each for each in range(1, len(self.addresses)) if each not in self.links]
                if time.monotonic() > deadline:
                    self.lost = f"{self.name(absent[0])} did not connect within {START_TIMEOUT:.0f} seconds"
                    self._broadcast(f"lost {absent[0]} did not connect within {START_TIMEOUT:.0f} seconds")
                    raise WorkerLost(self.lost)
                if time.monotonic() > print_at:
                    print(f"keras_mart: waiting for {', '.join(map(self.name, absent))}", file=sys.stderr, flush=True)
                    print_at = deadline
                with contextlib.suppress(OSError):  # no connection yet
                    self._accept(_Link(listener.accept()[0]))
        self._broadcast("go")

    def _accept(self, link):
        fields = (link.wait(time.monotonic() + HEARTBEAT) or [""])[0].split()
        if len(fields) != 3 or fields[0] != HELLO or fields[2] != str(len(self.addresses)) or not fields[1].isdigit():
            link.send(f"lost 0 has a cluster of {len(self.addresses)} workers")
            link.connection.close()
            return
        worker = int(fields[1])
        if worker in self.links:
            self.links[worker].send(f"lost {worker} was started twice, or again")
        self.links[worker] = link

    def _join(self, deadline):
        """Connects to the chief, on the other workers, and waits until all have connected."""
        _listen(self.addresses[self.index]).close()  # raises an error before all have connected if the port is in use
        host, port = split(self.addresses[0])
        reason = "no answer"
        while time.monotonic() < deadline:
            try:
                link = _Link(socket.create_connection((host, port), timeout=HEARTBEAT))
            except OSError as error:
                reason = error
                time.sleep(0.3)
                continue
            link.send(f"{HELLO} {self.index} {len(self.addresses)}")
            lines = link.wait(deadline + 2 * HEARTBEAT)  # so that the chief's own timeout comes first
            if lines and lines[0] == "go":
                self.links[0] = link
                self._receive(0, lines[1:])  # the chief may have failed at once
                return
            if lines and lines[0].startswith("lost "):
                self._set_lost(lines[0])
                raise WorkerLost(self.lost)
            reason = "it closed the connection, or another program listens there"
            time.sleep(0.3)
        raise WorkerLost(f"{self.name(0)} could not be reached within {START_TIMEOUT:.0f} seconds: {reason}")

    def _run(self):
        next_heartbeat = 0.0
        while not self.leaving and self.lost is None and self.links:
            if time.monotonic() >= next_heartbeat:
                self._broadcast("alive")
                next_heartbeat = time.monotonic() + HEARTBEAT
            for worker in self._readable():
                self._receive(worker, self.links[worker].read())
            for worker, link in list(self.links.items()):
                silence = time.monotonic() - link.last_received
                if silence > self.timeout:
                    self._lose(worker, f"hangs: no sign of life for {silence:.0f} seconds")

    def _readable(self):
        with selectors.DefaultSelector() as selector:
            for worker, link in self.links.items():
                selector.register(link.connection, selectors.EVENT_READ, worker)
            return [key.data for key, _ in selector.select(HEARTBEAT / 2)]

    def _receive(self, worker, lines):
        if lines is None:
            self._lose(worker, "died or was killed")
        for line in lines or []:
            kind, _, rest = line.partition(" ")
            if kind == "ended":
                self._end(int(rest or worker))
            elif kind == "failed":
                self.links.pop(worker).connection.close()
                self._lose(worker, f"failed: {rest}")
            elif kind == "lost":
                self._set_lost(line)
                self._stop()

    def _end(self, worker):
        """Records that a worker has ended, and notifies the others; only once, or they would notify back forever."""
        if worker in self.ended:
            return
        self.ended.append(worker)
        if worker in self.links:
            self.links.pop(worker).connection.close()
        self._broadcast(f"ended {worker}")

    def _set_lost(self, line):
        _, worker, how = line.split(" ", 2)
        self.lost = f"{self.name(int(worker))} {how}"

    def _lose(self, worker, how):
        if self.lost is None and not self.leaving:
            self.lost = f"{self.name(worker)} {how}"
            self._broadcast(f"lost {worker} {how}")
            self._stop()

    def _broadcast(self, line):
        for link in list(self.links.values()):
            link.send(line)

    def _stop(self):
        """Exits the process directly, since a thread that waits inside TensorFlow cannot run Python code."""
        time.sleep(GRACE_PERIOD)
        if self.leaving:
            return
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)  # may block if another thread is writing
        flush.start()
        flush.join(1)
        self._print_lost()
        os._exit(WORKER_LOST)

    def _print_lost(self):
        lost = self.lost.rstrip(".")
        print(f"keras_mart: {lost}. This is worker {self.index}: stopped.", file=sys.stderr, flush=True)


def split(address):
    """Splits "host:port" into (host, port), and removes the brackets of an IPv6 host."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _listen(address):
    port = split(address)[1]
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise OSError(
            f"A worker must be able to listen at its address. Received: {address}, {error.strerror}"
        ) from error
