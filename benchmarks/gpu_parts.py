"""The parts of `benchmarks/gpu.py`: each runs child processes and returns rows, columns and notes."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable

from benchmarks import autoattack as comparison

FULL = {
    "network": "resnet18", "deep": "wide_resnet_34_10", "batch_size": 128, "large": 512, "attack_steps": 10,
    "steps": 20, "traced": 3, "examples": 256, "test_images": 1000, "epochs": 3, "batches": None,
}  # fmt: skip
SMALL = {
    "network": "wide_resnet_10_1", "deep": "wide_resnet_16_1", "batch_size": 8, "large": 16, "attack_steps": 2,
    "steps": 3, "traced": 2, "examples": 2, "test_images": 20, "epochs": 1, "batches": 5,
}  # fmt: skip
HARMLESS = 1 / 2550  # too small an epsilon for adversarial examples, so each stage of AutoAttack attacks all images
CASE = comparison.Case("adversarial", "Linf", 8 / 255)
ADAM = 1e-3  # learning rate of the short training
CONFIG = ("--flagfile=configs/cifar.cfg", "--precision=mixed_bfloat16", "--epochs=3")
SMALL_DATA = ("--dataset=digits", "--augment=none", "--network=wide_resnet", "--depth=10", "--width=1", "--steps=2")
BFLOAT16 = "keras_mart, bfloat16"
NAME_LENGTH = 80  # at which names of operations are cut

STEPS = (
    ("what", "name", ""), ("network", "network", ""), ("batch", "batch_size", ""),
    ("images/s", "images_per_second", ".0f"), ("ms", "milliseconds", ".1f"), ("least", "least", ".1f"),
    ("most", "most", ".1f"), ("MiB", "mebibytes", ".0f"), ("first s", "first", ".1f"), ("finite", "finite", ""),
)  # fmt: skip
OPERATIONS = (
    ("operation", "name", ""), ("a step", "count", ".0f"), ("ms a step", "milliseconds", ".3f"),
    ("share", "share", ".1%"),
)  # fmt: skip
STAGES = (("stage", "attack", ""), ("images", "images", "d"), ("s", "seconds", ".1f"), ("left", "left", ".1%"))
SPANS = (("what", "name", ""), ("s", "seconds", ".1f"))


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        run: function of the `Bench` that returns rows, columns and notes.
        share: relative share of the time.
    """

    run: Callable
    share: int


def keras_steps(bench, name, cached=False, **changes):
    """Runs a job of `benchmarks/step.py` and returns its row."""
    job = {"variant": "keras_mart", "method": "mart", "precision": "mixed_bfloat16", "attack_alone": False}
    job |= {key: bench.size[key] for key in ("network", "batch_size", "attack_steps", "steps")} | changes
    return row(name, job, bench.run(name, "step", job, cached=cached))


def main_steps(bench):
    """Returns the row that several parts use: MART in bfloat16, compiled by XLA with a cache of its programs.

    If this fails, the cache may be the cause: measures again without one.
    """
    found = keras_steps(bench, BFLOAT16, cached=True, jit_compile=True)
    return found if "milliseconds" in found else keras_steps(bench, BFLOAT16, jit_compile=True)


def main_steps_again(bench):
    """Returns the same row from another process with the filled cache, and traces some further steps."""
    traced = bench.size["traced"]
    return keras_steps(bench, f"{BFLOAT16}, again", cached=True, jit_compile=True, traced=traced)


def torch_steps(bench, variant, **changes):
    """Runs a job of `benchmarks/official.py` and returns its row."""
    job = {"variant": variant} | {key: bench.size[key] for key in ("network", "batch_size", "attack_steps", "steps")}
    job |= changes
    name = f"official, {variant}"
    return row(name, job, bench.run(name, "official", job, **bench.torch))


def row(name, job, answer):
    """Returns a row of the table of steps; without an answer, it prints as dashes."""
    found = {"name": name, **{key: job[key] for key in ("network", "batch_size")}}
    if not answer:
        return found
    milliseconds = [1000 * each for each in answer["steps"]]
    finite = sum(map(math.isfinite, answer["losses"]))
    return {
        **found,
        "images_per_second": 1000 * job["batch_size"] / statistics.median(milliseconds),
        "milliseconds": statistics.median(milliseconds),
        "least": min(milliseconds),
        "most": max(milliseconds),
        "mebibytes": answer["memory"] / 2**20,
        "first": answer["first"] - statistics.median(answer["steps"]),
        "finite": f"{finite} of {len(answer['losses'])}",
        "samples": milliseconds,
        "trace": answer.get("trace"),
    }


def table(bench):
    """Measures MART in this package and in PyTorch, the most important first, as time may run out."""
    large, deep = {"batch_size": bench.size["large"]}, {"network": bench.size["deep"]}
    jobs = [main_steps, lambda bench: keras_steps(bench, BFLOAT16, **large)]
    if bench.torch:
        kinds = [("shipped", {}), ("tuned", {}), ("tuned", large), ("tuned", deep)]
        jobs += [
            lambda bench, variant=variant, more=more: torch_steps(bench, variant, **more) for variant, more in kinds
        ]
    jobs += [
        lambda bench: keras_steps(bench, f"{BFLOAT16}, no XLA", jit_compile=False),
        lambda bench: keras_steps(bench, BFLOAT16, **deep),
        lambda bench: keras_steps(bench, "keras_mart, float32", precision="float32"),
    ]
    if bench.torch:
        jobs.append(lambda bench: torch_steps(bench, "compiled", **large))
    rows = [job(bench) for job in jobs]
    notes = list(comparisons(rows)) if bench.torch else ["no Python with PyTorch was found"]
    return sorted(rows, key=lambda each: (each["network"], each["batch_size"])), STEPS, notes


def comparisons(rows):
    """Yields the speed of this package in bfloat16 relative to the official code, for each network and batch."""
    measured = [each for each in rows if "milliseconds" in each]
    ours = {(each["network"], each["batch_size"]): each for each in measured if each["name"] == BFLOAT16}
    for each in measured:
        mine = ours.get((each["network"], each["batch_size"]))
        if mine and each["name"].startswith("official"):
            ratio = each["milliseconds"] / mine["milliseconds"]
            yield f"{each['network']}, batch {each['batch_size']}: {ratio:.2f} times as fast as {each['name']}"


def startup(bench):
    """Measures the first step of a process that writes the cache, and of one that reads it."""
    rows = [
        {**main_steps(bench), "name": "empty cache"},
        {**main_steps_again(bench), "name": "cache of that run"},
    ]
    files = [path for path in bench.cache.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    notes = [
        f"additional time of the first step: {each['first']:.1f} s, {each['name']}" for each in rows if "first" in each
    ]
    return rows, STEPS, [*notes, f"the cache contains {len(files)} files, {size:.1f} MiB"]


def profile(bench):
    """Lists the longest operations of steps after the timed ones."""
    trace = main_steps_again(bench).get("trace")
    if not trace:
        return [], OPERATIONS, ["no trace"]
    steps = bench.size["traced"]
    rows = [
        {
            "name": each["name"][:NAME_LENGTH],
            "count": each["count"] / steps,
            "milliseconds": 1000 * each["seconds"] / steps,
            "share": each["share"],
        }
        for each in trace["longest"]
    ]
    idle = f"{trace['device']} is idle for {trace['idle']:.1%} of {1000 * trace['seconds'] / steps:.1f} ms a step"
    return rows, OPERATIONS, [f"{idle}; {trace['operations'] / steps:.0f} operations a step"]


def replicas(bench):
    """Compares one device with two logical ones, both compiled by XLA (also on a CPU)."""
    rows = [
        {**main_steps(bench), "name": "one device"},
        keras_steps(bench, "two logical devices", jit_compile=True, replicas=2),
    ]
    return rows, STEPS, [f"{each['name']}: {each['milliseconds']:.1f} ms" for each in rows if "milliseconds" in each]


def float16(bench):
    """Measures float16 with loss scaling; losses are means since the first step, so none is finite after a bad one."""
    found = keras_steps(bench, "keras_mart, float16", precision="mixed_float16")
    if "milliseconds" not in found:
        return [found], STEPS, ["nothing was measured"]
    return [found], STEPS, [f"{found['milliseconds']:.1f} ms a step, finite losses: {found['finite']}"]


def autoattack(bench):
    """Measures AutoAttack in the second of two runs, or in the first if time runs out."""
    job = {"task": "evaluate", "attack": "autoattack", "variant": "keras_mart", "precision": "mixed_bfloat16"}
    job |= {"network": bench.size["network"], "model": None, "weights": None, "dataset": None, "repeats": 1}
    job |= {"examples": bench.size["examples"], "batch_size": bench.size["examples"], "epsilon": HARMLESS}
    answer = bench.run("AutoAttack", "evaluation", job)
    if not answer:
        return [], STAGES, ["nothing was measured"]
    rows = [{**each, "seconds": sum(each["seconds"])} for each in answer["rows"]]
    first = "compiling included" if answer["first"] is None else f"{answer['first']:.1f} s more when it compiled"
    return rows, STAGES, [f"{rows[0]['seconds']:.1f} s for {rows[0]['images']} images, {first}"]


def official(bench):
    """Compares AutoAttack with the official code on images of `--cifar`, on a network that is trained first."""
    size, checkout = bench.size, bench.given.official
    if not (checkout and bench.given.cifar and bench.torch):
        return [], comparison.COLUMNS, ["skipped: needs --official, --cifar and a Python with PyTorch"]
    run = functools.partial(bench.run, "AutoAttack")
    network = comparison.Network(size["network"], f"npz:{bench.given.cifar}", size["test_images"], size["test_images"])
    options = {"epochs": size["epochs"], "steps": size["batches"], "adam": ADAM}
    weights, exported = comparison.prepare(run, network, CASE.training, bench.folder, CASE.epsilon, **options)
    pair = (
        comparison.run_ours(run, network, CASE, weights, seed=0),
        comparison.run_official(run, network, CASE, exported, checkout, seed=0, **bench.torch),
    )
    rows = list(comparison.rows(CASE, [pair]))
    notes = [
        " ".join(f"{key} {row[key]:.1f}" for key in ("official", "first", "again") if row[key]) + " s"
        for row in rows if row["stage"] == comparison.WHOLE
    ]  # fmt: skip
    return rows, comparison.COLUMNS, [f"AutoAttack on {network.examples} images: {note}" for note in notes]


def epochs(bench):
    """Measures training by the command line, on digits with `--small`."""
    data = [f"--dataset=npz:{bench.given.cifar}"] if bench.given.cifar else []
    if bench.given.small and not data:
        data = list(SMALL_DATA)
    if not data:
        return [], SPANS, ["skipped: needs --cifar"]
    flags = [*CONFIG, *data, f"--workdir={bench.folder / 'run'}"]
    answer = bench.run("command line", "epochs", {"flags": flags})
    if not answer:
        return [], SPANS, ["nothing was measured"]
    seconds = answer["epochs"]
    rows = [{"name": "before the first epoch", "seconds": answer["before"]}]
    rows += [{"name": f"epoch {number}", "seconds": each} for number, each in enumerate(seconds, 1)]
    more = f"{seconds[0] - statistics.median(seconds[1:]):.1f}" if len(seconds) > 1 else "an unknown number of"
    return rows, SPANS, [f"the first epoch takes {more} s more than the others"]


PARTS = {
    "table": Part(table, 180),
    "startup": Part(startup, 50),
    "profile": Part(profile, 30),
    "replicas": Part(replicas, 60),
    "float16": Part(float16, 50),
    "autoattack": Part(autoattack, 60),
    "epochs": Part(epochs, 50),
    "official": Part(official, 420),
}
