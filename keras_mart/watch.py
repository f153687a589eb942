"""Workers that watch one another, so that whoever loses one says which and stops, rather than wait for it.

TensorFlow gives up a collective operation ten seconds after a worker died, with an error that seldom says which; it
says nothing to a worker that computes by itself at that moment, and waits an hour for one that never starts. So each
worker holds one plain connection to the first for as long as it lives. It is made through the first worker's own
address, before TensorFlow opens that port: a cluster needs no further port, and all are there when TensorFlow starts.
"""

import atexit
import contextlib
import os
import selectors
import socket
import sys
import threading
import time

WORKER_LOST = 4  # the exit status of a worker that lost another

START = 300.0  # seconds for all workers to come
PATIENCE = 40.0  # seconds without a sign of life, after which a worker counts as hung
BEAT = 2.0  # seconds between signs of life
GRACE = 3.0  # seconds for a process to end by itself after another was lost
NOTICED = 12.0  # seconds of patience once TensorFlow reports a failure: it waits ten itself
HELLO = "keras_mart"
# How TensorFlow's collective operations fail where a worker is lost.
COLLECTIVE = {
    "AbortedError", "CancelledError", "DeadlineExceededError", "FailedPreconditionError", "InternalError",
    "UnavailableError",
}  # fmt: skip

_watch = None


class WorkerLost(ConnectionError):
    """A worker of the cluster did not come, failed, died or hangs."""


def begin(addresses, index):
    """Waits until all workers are there, and watches them from then on. Once a process.

    Where one is lost afterwards, this process prints which and how and ends with status `WORKER_LOST`, unless it ends
    by itself within `GRACE` seconds.

    Args:
        addresses: "host:port" of all workers, as TensorFlow gets them; the first is the chief.
        index: which of them this process is.

    Raises:
        WorkerLost: one did not come within `START` seconds.
        ValueError: a second cluster in the same process.
    """
    global _watch
    if _watch is None:
        _watch = _Watch(addresses, index)
    elif (_watch.addresses, _watch.index) != (list(addresses), index):
        raise ValueError(f"A process belongs to one cluster. Received: {addresses} after {_watch.addresses}")


def leave(failure=None):
    """Tells the others that this process ends: as it should, or because of `failure`, an error or a text."""
    if _watch is not None:
        _watch.leave(failure)


def explain(error):
    """Ends the process, saying which worker was lost, where that is behind an error; else returns.

    It waits some seconds for the verdict, where the error is one that collective operations fail with.
    """
    if _watch is not None and type(error).__name__ in COLLECTIVE:
        _watch.explain()


class _Link:
    """A connection to one worker: lines out, lines in."""

    def __init__(self, connection):
        self.connection, self.heard, self.rest = connection, time.monotonic(), b""
        connection.settimeout(BEAT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, line):
        with contextlib.suppress(OSError):  # a dead one is noticed by reading
            self.connection.sendall(f"{line}\n".encode())

    def read(self):
        """The whole lines that have come, None at the end of the connection."""
        try:
            data = self.connection.recv(4096)
        except TimeoutError:
            return []
        except OSError:  # closed on this side as well
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def finish(self, deadline):
        """Waits until the other side has read all: a process that ends with something unread takes its words back."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(0.2)
        while self.read() is not None and time.monotonic() < deadline:
            pass

    def wait(self, deadline):
        """The first lines to come before the deadline, None where none come."""
        while time.monotonic() < deadline:
            lines = self.read()
            if lines != []:
                return lines
        return None


class _Watch:
    def __init__(self, addresses, index):
        self.addresses, self.index = list(addresses), index
        self.links, self.ended = {}, []  # by worker: all the others' for the chief, the chief's for the others
        self.patience, self.leaving, self.lost = PATIENCE, False, None
        deadline = time.monotonic() + START
        self._gather(deadline) if index == 0 else self._join(deadline)
        atexit.register(self._at_exit)
        threading.Thread(target=self._run, name="keras_mart.watch", daemon=True).start()

    def name(self, worker):
        return f"worker {worker} ({self.addresses[worker]})"

    def leave(self, failure=None):
        if self.leaving:
            return
        self.leaving = True
        text = " ".join(str(failure).split())[:300] or type(failure).__name__
        self._tell("ended" if failure is None else f"failed {text}")
        end = time.monotonic() + 1
        for link in list(self.links.values()):
            link.finish(end)
        if self.lost:  # why this process fails too
            self._say()

    def explain(self):
        if self.patience == NOTICED:  # asked before
            return
        self.patience = NOTICED
        end = time.monotonic() + NOTICED + BEAT
        while self.lost is None and time.monotonic() < end:
            time.sleep(0.1)
        if self.lost is None and self.ended:
            self._lose(self.ended[0], "ended before this one")
        elif self.lost is not None:
            time.sleep(GRACE + BEAT)  # _stop is under way

    def _at_exit(self):
        error = getattr(sys, "last_value", None)  # what Python printed a traceback of
        if error is not None:
            explain(error)
        self.leave(error)

    def _gather(self, deadline):
        """The chief's way: takes the others' connections at its own address, which TensorFlow's server has next."""
        said = time.monotonic() + 10
        with _listen(self.addresses[0]) as listener:
            listener.settimeout(0.5)
            while len(self.links) < len(self.addresses) - 1:
                absent = [each for each in range(1, len(self.addresses)) if each not in self.links]
                if time.monotonic() > deadline:
                    self.lost = f"{self.name(absent[0])} did not come within {START:.0f} seconds"
                    self._tell(f"lost {absent[0]} did not come within {START:.0f} seconds")
                    raise WorkerLost(self.lost)
                if time.monotonic() > said:
                    print(f"keras_mart: waiting for {', '.join(map(self.name, absent))}", file=sys.stderr, flush=True)
                    said = deadline
                with contextlib.suppress(OSError):  # nobody yet
                    self._welcome(_Link(listener.accept()[0]))
        self._tell("go")

    def _welcome(self, link):
        said = (link.wait(time.monotonic() + BEAT) or [""])[0].split()
        if len(said) != 3 or said[0] != HELLO or said[2] != str(len(self.addresses)) or not said[1].isdigit():
            link.send(f"lost 0 has a cluster of {len(self.addresses)} workers")
            link.connection.close()
            return
        worker = int(said[1])
        if worker in self.links:
            self.links[worker].send(f"lost {worker} was started twice, or again")
        self.links[worker] = link

    def _join(self, deadline):
        """The others' way: reaches the chief, and waits until it has all."""
        _listen(self.addresses[self.index]).close()  # a taken port is said before the others go on
        host, port = split(self.addresses[0])
        why = "no answer"
        while time.monotonic() < deadline:
            try:
                link = _Link(socket.create_connection((host, port), timeout=BEAT))
            except OSError as error:
                why = error
                time.sleep(0.3)
                continue
            link.send(f"{HELLO} {self.index} {len(self.addresses)}")
            lines = link.wait(deadline + 2 * BEAT)  # the chief, started earlier or later, speaks first
            if lines and lines[0] == "go":
                self.links[0] = link
                self._hear(0, lines[1:])  # the chief may have failed at once
                return
            if lines and lines[0].startswith("lost "):
                self._lost_line(lines[0])
                raise WorkerLost(self.lost)
            why = "it hung up, or another program listens there"
            time.sleep(0.3)
        raise WorkerLost(f"{self.name(0)} could not be reached within {START:.0f} seconds: {why}")

    def _run(self):
        beat = 0.0
        while not self.leaving and self.lost is None and self.links:
            if time.monotonic() >= beat:
                self._tell("alive")
                beat = time.monotonic() + BEAT
            for worker in self._readable():
                self._hear(worker, self.links[worker].read())
            for worker, link in list(self.links.items()):
                silence = time.monotonic() - link.heard
                if silence > self.patience:
                    self._lose(worker, f"hangs: no sign of life for {silence:.0f} seconds")

    def _readable(self):
        with selectors.DefaultSelector() as selector:
            for worker, link in self.links.items():
                selector.register(link.connection, selectors.EVENT_READ, worker)
            return [key.data for key, _ in selector.select(BEAT / 2)]

    def _hear(self, worker, lines):
        if lines is None:
            self._lose(worker, "died or was killed")
        for line in lines or []:
            what, _, rest = line.partition(" ")
            if what == "ended":
                self._ends(int(rest or worker))
            elif what == "failed":
                self.links.pop(worker).connection.close()
                self._lose(worker, f"failed: {rest}")
            elif what == "lost":
                self._lost_line(line)
                self._stop()

    def _ends(self, worker):
        self.ended.append(worker)
        if worker in self.links:
            self.links.pop(worker).connection.close()
        self._tell(f"ended {worker}")

    def _lost_line(self, line):
        _, worker, how = line.split(" ", 2)
        self.lost = f"{self.name(int(worker))} {how}"

    def _lose(self, worker, how):
        if self.lost is None and not self.leaving:
            self.lost = f"{self.name(worker)} {how}"
            self._tell(f"lost {worker} {how}")
            self._stop()

    def _tell(self, line):
        for link in list(self.links.values()):
            link.send(line)

    def _stop(self):
        """Ends the process, whatever it waits for: no Python code runs in a thread that waits inside TensorFlow."""
        time.sleep(GRACE)
        if self.leaving:
            return
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)  # might wait for whoever writes
        flush.start()
        flush.join(1)
        self._say()
        os._exit(WORKER_LOST)

    def _say(self):
        lost = self.lost.rstrip(".")
        print(f"keras_mart: {lost}. This is worker {self.index}: stopped.", file=sys.stderr, flush=True)


def split(address):
    """(host, port) of a "host:port"; IPv6 hosts stand in brackets."""
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
