"""All that needs a GPU, in one run of some minutes: python -m benchmarks.gpu --json=gpu.json

Each part has its own share of `--seconds`, and what a part leaves goes to those after it; each measurement is a process
of its own. One that fails or runs over is reported, and the rest goes on.

table       a training step of MART beside the official code's in PyTorch, where a Python with PyTorch is found
startup     the first step of `fit` besides a step: without and with XLA's programs of the run before in a cache
profile     the operations that take longest in a step, and the share of the time in which the device is idle
replicas    MirroredStrategy on two logical devices of the one there is, beside one, on as many images
float16     steps with loss scaling: their time, and whether the loss stays finite
autoattack  AutoAttack on random images that all withstand it, so that every stage attacks all of them
epochs      the command line: configs/cifar.cfg for three epochs on `--cifar`, left out without it
official    with `--official`: AutoAttack beside the official code on a network that is trained on `--cifar` for some
            epochs; alone (`--parts=official`) it needs all of the time

In the tables "first s" is what the first run or step takes longer than a later one, and MiB are of the GPU's memory at
its peak, or of the process on a CPU. Without a GPU, `--small` tries all of it on small networks in about two minutes.
"""

import argparse
import functools
import json
import os
import pathlib
import tempfile
import time
import traceback

from benchmarks import gpu_parts, measure


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=measure.names, help="all by default, `official` where its code is given")
    parser.add_argument("--seconds", type=measure.positive, default=480, help="for all parts together")
    parser.add_argument("--small", action="store_true", help="small networks and few steps, for a CPU")
    parser.add_argument("--torch", help="a Python that has PyTorch; by default this one or /usr/bin/python3")
    parser.add_argument(
        "--cifar", type=os.path.abspath, help="CIFAR-10 as an npz file, in the layout of Keras's mnist.npz"
    )
    parser.add_argument("--official", type=os.path.abspath, help="a checkout of github.com/fra31/auto-attack")
    parser.add_argument("--json", help="file to keep the figures and all samples in; written after each part")
    given = parser.parse_args()
    if given.parts is None:
        given.parts = [name for name in gpu_parts.PARTS if name != "official" or given.official]
    if unknown := set(given.parts) - set(gpu_parts.PARTS):
        parser.error(f"--parts must be among {', '.join(gpu_parts.PARTS)}. Received: {', '.join(unknown)}")
    return given


class Bench:
    """Runs children within the time of a part, and none of them twice.

    Attributes:
        size: the numbers that all measurements share, of `gpu_parts.FULL` or `gpu_parts.SMALL`.
        cache: the folder where `cached` children keep what XLA compiled.
        until: when the part that is on must end, of `time.monotonic`.
        failures: a line for each child that failed or ran over.
    """

    def __init__(self, given, folder):
        self.given, self.folder, self.cache = given, folder, folder / "cache"
        self.size = gpu_parts.SMALL if given.small else gpu_parts.FULL
        self.until, self.failures, self._answers = 0.0, [], {}

    def run(self, name, module, job, *, cached=False, **options):
        """The last answer of a child, `None` for nothing; what it answered before it failed counts."""
        key = json.dumps([module, job, cached])
        if key in self._answers:
            return self._answers[key]
        if cached:
            flags = f"{os.environ.get('TF_XLA_FLAGS', '')} --tf_xla_persistent_cache_directory={self.cache}"
            options["environment"] = {**os.environ, "TF_XLA_FLAGS": flags}
        begin = time.monotonic()
        if self.until - begin < 1:
            return self.fail(f"{name}: no time was left for {module} {' '.join(map(str, job.values()))}")
        try:
            answered = measure.run(module, job, timeout=self.until - begin, **options)
        except measure.Failed as failure:
            answered = failure.answer
            self.fail(f"{name}: {failure}")
        print(f"   {name}: {time.monotonic() - begin:.0f} s", flush=True)
        return self._answers.setdefault(key, answered)

    def fail(self, message):
        """Prints what went wrong, and keeps its first line and its last for the summary."""
        print(f"FAILED {message}", flush=True)
        lines = message.strip().splitlines()
        self.failures.append(" ... ".join(dict.fromkeys((lines[0], lines[-1]))))

    @functools.cached_property
    def torch(self):
        """What `run` needs for a child with PyTorch; `None` where there is none."""
        return measure.torch(self.given.torch)


def limit(part, others, left):
    """Seconds that a part may take of those left, as its share compares with those of the parts after it."""
    shares = {name: gpu_parts.PARTS[name].share for name in (part, *others)}
    return left * shares[part] / sum(shares.values())


def run_part(name, bench, seconds):
    """Runs a part and prints its table; the result of it."""
    print(f"== {name}, at most {seconds:.0f} s", flush=True)
    begin, bench.until = time.monotonic(), time.monotonic() + seconds
    try:
        rows, columns, notes = gpu_parts.PARTS[name].run(bench)
    except Exception:  # such as an answer that is not what was expected: the other parts go on
        bench.fail(f"{name}: {traceback.format_exc()}")
        return {"rows": [], "notes": [], "seconds": time.monotonic() - begin}
    measure.print_table(rows, columns)
    print(*notes, f"{name} took {time.monotonic() - begin:.0f} s", "", sep="\n", flush=True)
    return {"rows": rows, "notes": notes, "seconds": time.monotonic() - begin}


def main():
    given = arguments()
    end, machine, results = time.monotonic() + given.seconds, measure.machine(), {}
    print(measure.line(machine), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, pathlib.Path(folder))
        for number, name in enumerate(given.parts):
            seconds = limit(name, given.parts[number + 1 :], end - time.monotonic())
            results[name] = run_part(name, bench, seconds)
            measure.write(given.json, machine=machine, arguments=vars(given), parts=results, failures=bench.failures)
    print("== summary")
    for name, result in results.items():
        print(*(f"{name}: {note}" for note in result["notes"]), sep="\n")
    print(*(f"failed: {failure}" for failure in bench.failures), sep="\n", flush=True)


if __name__ == "__main__":
    main()
