"""SIGTERM and Ctrl-C: a run finishes what it must not leave half done, saves, and ends."""

import contextlib
import signal
import sys

# How a process that a signal ended is reported by shells.
STATUS = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}


def say(text):
    """Prints to stderr, if it can: Ctrl-C ends whoever reads it too, and may come while something is printed."""
    with contextlib.suppress(OSError, RuntimeError):
        print(text, file=sys.stderr, flush=True)


class Stopped(BaseException):
    """The run was asked to stop. `number` is the signal's."""

    def __init__(self, number):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Requests:
    """Takes SIGTERM and SIGINT, as a context; a second one ends the process as ever, at once.

    The first raises `Stopped` where the program is, or, while `deferred`, waits until it is looked at.
    """

    def __init__(self):
        self.number = None
        self.deferred = False
        self._before = {}

    def __enter__(self):
        for number in STATUS:
            # What is ignored, as Ctrl-C is by a process in the background, stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.getsignal(number)
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_if_stopped(self):
        """Raises `Stopped` if there was a request, and from now on as soon as there is one."""
        self.deferred = False
        if self.number is not None:
            raise self.stopped()

    def stopped(self):
        """The error to raise; where another worker was asked, as if this one had been by SIGTERM."""
        return Stopped(self.number or signal.SIGTERM)

    def _handle(self, number, frame):
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        self.number = number
        say(f"\n{signal.Signals(number).name}: saving; a second one ends it at once.")
        if not self.deferred:
            raise Stopped(number)
