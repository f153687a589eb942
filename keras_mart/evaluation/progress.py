"""What an evaluation says while it runs."""

import sys
import time

SILENT, BAR, LINES = 0, 1, 2
# Where there is no terminal, a line within a round at most every so many seconds.
SELDOM = 60


class Progress:
    """Shows how far an evaluation is.

    On a terminal a line that is written over again and again; elsewhere a line after each stage of an attack, and with
    `verbose=2` after each round and, in long ones, each minute.

    Args:
        examples: number of examples.
        verbose: 0 for silence, 1 or 2.
    """

    def __init__(self, examples, verbose):
        self.examples = examples
        self.verbose = verbose
        self._rewrites = verbose == BAR and sys.stdout.isatty()
        self._said = time.perf_counter()
        self._step, self._which, self._done, self._width = None, 0, 0, 0

    def begin(self, step, which):
        """Called before each round, which attacks so many examples."""
        self._step, self._which, self._done = step, which, 0
        if self._rewrites:
            self._say(self._within())

    def batch(self, count):
        """Called after each batch of so many examples."""
        self._done += count
        if self._rewrites or (self.verbose == LINES and time.perf_counter() - self._said > SELDOM):
            self._say(self._within())

    def end(self, step, left, seconds):
        """Called after each round: so many examples are left, and the stage took so many seconds as yet."""
        if step.number + 1 == step.rounds or self.verbose == LINES:
            place = f", round {step.number + 1} of {step.rounds}" if step.number + 1 < step.rounds else ""
            self._say(f"{step.row}{place}: {left:,} of {self.examples:,} correct, {seconds:,.1f}s", lasting=True)

    def _within(self):
        rounds = f", round {self._step.number + 1} of {self._step.rounds}" if self._step.rounds > 1 else ""
        return f"{self._step.row}{rounds}: {self._done:,} of {self._which:,} examples"

    def _say(self, text, lasting=False):
        if not self.verbose:
            return
        self._said = time.perf_counter()
        if self._rewrites:
            print(f"\r{text:<{self._width}}", end="\n" if lasting else "", flush=True)
            self._width = 0 if lasting else len(text)
        else:
            print(text, flush=True)
