"""Handles SIGTERM and Ctrl-C: a run completes its current step, saves its state, and exits."""

import contextlib
import signal
import sys

# Exit statuses of processes ended by a signal, as shells report them.
STATUS = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}


def say(text):
    """Prints to stderr, ignoring errors: after Ctrl-C its reader may have exited, or a print may be in progress."""
    with contextlib.suppress(OSError, RuntimeError):
        print(text, file=sys.stderr, flush=True)


class Stopped(BaseException):
    """The run was requested to stop by signal `number`."""

    def __init__(self, number):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Requests:
    """Context manager that handles SIGTERM and SIGINT.

    The first signal raises `Stopped` at once or, while `deferred` is set, is stored until the program checks for it. A
    second one ends the process at once, as by default.
    """

    def __init__(self):
        self.number = None
        self.deferred = False
        self._before = {}

    def __enter__(self):
        for number in STATUS:
            # An ignored signal, such as Ctrl-C in a background process, stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.getsignal(number)
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_if_stopped(self):
        """Raises `Stopped` if there was a signal, and lets further signals raise it at once."""
        self.deferred = False
        if self.number is not None:
            raise self.stopped()

    def stopped(self):
        """Returns the error to raise; if the signal went to another worker, that of SIGTERM."""
        return Stopped(self.number or signal.SIGTERM)

    def _handle(self, number, frame):
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        self.number = number
        say(f"\n{signal.Signals(number).name}: saving; send it again to exit at once.")
        if not self.deferred:
            raise Stopped(number)
