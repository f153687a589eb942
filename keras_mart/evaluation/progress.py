"""What an evaluation says while it runs."""

import sys
import time

SILENT, BAR, LINES = 0, 1, 2


class Progress:
    """Shows how far an evaluation is.

    On a terminal a line that is written over again and again, with the round of the attack that is being run;
    elsewhere a line for each batch, and with `verbose=2` one for each stage as well.

    Args:
        batches: number of batches, `None` where nobody knows.
        verbose: 0 for silence, 1 or 2.
    """

    def __init__(self, batches, verbose):
        self.batches = batches
        self.verbose = verbose
        self._rewrites = verbose == BAR and sys.stdout.isatty()
        self._start = time.perf_counter()
        self._done, self._shown, self._width = 0, "", 0

    def round(self, progress):
        """Called before each round of an attack, with a `keras_mart.attacks.survivors.Progress`."""
        if self._rewrites:
            part = f", round {progress.round + 1} of {progress.rounds}" if progress.rounds > 1 else ""
            self._rewrite(f"{self._shown}  [{progress.attack}{part}: {progress.left:,} left]")

    def stage(self, name, left, attacked, seconds):
        """Called after each stage: `left` of the `attacked` examples are still classified correctly."""
        if self.verbose == LINES:
            print(f"{self._place(self._done + 1)}  {name}: {left:,} of {attacked:,} left, {seconds:.1f}s", flush=True)

    def batch(self, accuracies):
        """Called after each batch, with name to accuracy so far."""
        self._done += 1
        values = " - ".join(f"{name}: {value:.4f}" for name, value in accuracies.items())
        self._shown = f"{self._place(self._done)}  {time.perf_counter() - self._start:.0f}s  {values}"
        if self._rewrites:
            self._rewrite(self._shown)
        elif self.verbose:
            print(self._shown, flush=True)

    def close(self):
        """Leaves the last line standing."""
        if self._rewrites:
            print(flush=True)

    def _place(self, number):
        return f"{number}/{self.batches or '?'}"

    def _rewrite(self, text):
        print(f"\r{text:<{self._width}}", end="", flush=True)
        self._width = len(text)
