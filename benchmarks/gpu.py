"""Runs all measurements that need a GPU, within some minutes: python -m benchmarks.gpu --json=gpu.json

Each part has a share of `--seconds`, and passes unused time to the following parts. Each measurement runs in its own
process. If one fails or exceeds its time, it is reported and the others continue.

table       a training step of MART, compared with the official code's in PyTorch if a Python with PyTorch is found
startup     additional time of the first step of `fit`: without and with XLA's programs of an earlier run in a cache
profile     the longest operations of a step, and the share of the time in which the device is idle
replicas    MirroredStrategy on two logical devices of one GPU, compared with one device, on as many images
float16     steps with loss scaling: their time, and whether the loss stays finite
autoattack  AutoAttack on random images that all stay correctly classified, so that every stage attacks all of them
epochs      the command line: configs/cifar.cfg for three epochs on `--cifar`, skipped without it
official    with `--official`: AutoAttack compared with the official code, on a network trained on `--cifar` for some
            epochs; it needs all of the time (`--parts=official`)

In the tables "first s" is the additional time of the first run or step over a later one, and MiB are the peak memory of
the GPU, or of the process on a CPU. Without a GPU, `--small` tries everything on small networks in about two minutes.
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
    parser.add_argument("--parts", type=measure.names, help="all by default, `official` only with --official")
    parser.add_argument("--seconds", type=measure.positive, default=480, help="for all parts together")
    parser.add_argument("--small", action="store_true", help="small networks and few steps, for a CPU")
    parser.add_argument("--torch", help="a Python with PyTorch; by default this one or /usr/bin/python3")
    parser.add_argument(
        "--cifar", type=os.path.abspath, help="CIFAR-10 as an npz file, in the layout of Keras's mnist.npz"
    )
    parser.add_argument("--official", type=os.path.abspath, help="a checkout of github.com/fra31/auto-attack")
    parser.add_argument("--json", help="file for the figures and all samples; written after each part")
    given = parser.parse_args()
    if given.parts is None:
        given.parts = [name for name in gpu_parts.PARTS if name != "official" or given.official]
    if unknown := set(given.parts) - set(gpu_parts.PARTS):
        parser.error(f"--parts must be among {', '.join(gpu_parts.PARTS)}. Received: {', '.join(unknown)}")
    return given


class Bench:
    """Runs child processes within the time of a part, and each job only once.

    Attributes:
        size: settings that all measurements share, `gpu_parts.FULL` or `gpu_parts.SMALL`.
        cache: folder of the XLA programs of `cached` children.
        deadline: end of the current part, of `time.monotonic`.
        failures: a line for each child that failed or exceeded its time.
    """

    def __init__(self, given, folder):
        self.given, self.folder, self.cache = given, folder, folder / "cache"
        self.size = gpu_parts.SMALL if given.small else gpu_parts.FULL
        self.deadline, self.failures, self._answers = 0.0, [], {}

    def run(self, name, module, job, *, cached=False, **options):
        """Runs a child and returns its last answer, also if it failed afterwards, or `None`."""
        key = json.dumps([module, job, cached])
        if key in self._answers:
            return self._answers[key]
        if cached:
            flags = f"{os.environ.get('TF_XLA_FLAGS', '')} --tf_xla_persistent_cache_directory={self.cache}"
            options["environment"] = {**os.environ, "TF_XLA_FLAGS": flags}
        begin = time.monotonic()
        if self.deadline - begin < 1:
            return self.fail(f"{name}: no time was left for {module} {' '.join(map(str, job.values()))}")
        try:
            answer = measure.run(module, job, timeout=self.deadline - begin, **options)
        except measure.Failed as failure:
            answer = failure.answer
            self.fail(f"{name}: {failure}")
        print(f"   {name}: {time.monotonic() - begin:.0f} s", flush=True)
        return self._answers.setdefault(key, answer)

    def fail(self, message):
        """Prints a failure, and keeps its first and last lines for the summary."""
        print(f"FAILED {message}", flush=True)
        lines = message.strip().splitlines()
        self.failures.append(" ... ".join(dict.fromkeys((lines[0], lines[-1]))))

    @functools.cached_property
    def torch(self):
        """Arguments of `run` for a child with PyTorch, `None` if there is none."""
        return measure.torch(self.given.torch)


def limit(part, others, left):
    """Returns the seconds for a part: its share of those left, relative to the shares of the following parts."""
    shares = {name: gpu_parts.PARTS[name].share for name in (part, *others)}
    return left * shares[part] / sum(shares.values())


def run_part(name, bench, seconds):
    """Runs a part, prints its table and returns its result."""
    print(f"== {name}, at most {seconds:.0f} s", flush=True)
    begin, bench.deadline = time.monotonic(), time.monotonic() + seconds
    try:
        rows, columns, notes = gpu_parts.PARTS[name].run(bench)
    except Exception:  # such as an unexpected answer: the other parts continue
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
