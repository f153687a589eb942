"""Holds back the messages that TensorFlow's C++ libraries write to stderr at startup, for the command line."""

import atexit
import os
import sys
import tempfile

STDERR = 2
_held = None  # (the real stderr, the file of held-back messages), while they are held back


def by_command_line():
    """Returns whether the program is `keras-mart` or `python -m keras_mart.main`, without --verbosity."""
    program = "keras_mart.main" in sys.orig_argv or os.path.basename(sys.argv[0]) == "keras-mart"
    return sys.stderr is not None and program and not any("-verbosity" in argument for argument in sys.argv)


def hold():
    """Redirects stderr to a temporary file until `release`, or until the program ends."""
    global _held
    sys.stderr.flush()
    _held = os.dup(STDERR), tempfile.TemporaryFile()
    os.dup2(_held[1].fileno(), STDERR)
    atexit.register(release)


def release(show=True):
    """Restores stderr and, if `show`, writes the held-back messages to it."""
    global _held
    if _held is None:
        return
    sys.stderr.flush()
    (stderr, file), _held = _held, None
    os.dup2(stderr, STDERR)
    os.close(stderr)
    with file:
        file.seek(0)
        if show:
            os.write(STDERR, file.read())
