"""Progress output of an evaluation."""

import sys
import time

SILENT, BAR, LINES = 0, 1, 2
# Without a terminal: the least number of seconds between two lines within a round.
LINE_INTERVAL = 60


class Progress:
    """Prints the progress of an evaluation.

    On a terminal it updates one line; elsewhere it prints a line after each stage of an attack and, with `verbose=2`,
    after each round and every minute of a long one.

    Args:
        examples: number of examples.
        verbose: 0 for silent, 1 or 2.
    """

    def __init__(self, examples, verbose):
        self.examples = examples
        self.verbose = verbose
        self._rewrites = verbose == BAR and sys.stdout.isatty()
        self._printed = time.perf_counter()
        self._step, self._total, self._done, self._width = None, 0, 0, 0

    def begin(self, step, total):
        """Starts a round that attacks `total` examples."""
        self._step, self._total, self._done = step, total, 0
        if self._rewrites:
            self._print(self._within_round())

    def batch(self, count):
        """Adds a finished batch of `count` examples."""
        self._done += count
        if self._rewrites or (self.verbose == LINES and time.perf_counter() - self._printed > LINE_INTERVAL):
            self._print(self._within_round())

    def end(self, step, correct, seconds):
        """Ends a round that leaves `correct` examples; `seconds` is the time of its stage so far."""
        if step.number + 1 == step.rounds or self.verbose == LINES:
            place = f", round {step.number + 1} of {step.rounds}" if step.number + 1 < step.rounds else ""
            self._print(f"{step.row}{place}: {correct:,} of {self.examples:,} correct, {seconds:,.1f}s", final=True)

    def _within_round(self):
        rounds = f", round {self._step.number + 1} of {self._step.rounds}" if self._step.rounds > 1 else ""
        return f"{self._step.row}{rounds}: {self._done:,} of {self._total:,} examples"

    def _print(self, text, final=False):
        if not self.verbose:
            return
        self._printed = time.perf_counter()
        if self._rewrites:
            print(f"\r{text:<{self._width}}", end="\n" if final else "", flush=True)
            self._width = 0 if final else len(text)
        else:
            print(text, flush=True)
