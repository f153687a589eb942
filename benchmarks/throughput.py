"""Measures the speed of training: python -m benchmarks.throughput --networks=resnet18 --batch_sizes=128

The variants are the package (`keras_mart`), the package without its fast views of networks (`unfolded`; the zoo's own
BatchNormalization stays), and the same training written the usual way in Keras (`plain`). Each measurement runs in its
own process; the variants alternate.

    images/s, low, high   in the median of all timed steps, in the slowest and in the fastest
    step, attack, outer   seconds of the median step, of its attack by itself, and the difference
    GFLOP/s, of matrix    operations of convolutions and dense layers (`networks.training_flops`), and their share of
                          the rate of a product of 4096x4096 matrices in that precision, measured in the same rounds
    MiB                   peak resident memory of a process minus that after importing the package
    first s               time from the call of `fit` to the end of the first step, minus the median step
    parts                 number of parts in which a step processes its batch: --accumulate=1,2,4 shows their cost in
                          time and saving in memory
    vs plain              speed relative to `plain`, the median over the rounds
"""

import argparse
import itertools
import statistics

from benchmarks import measure

VARIANTS = ("keras_mart", "plain", "unfolded")
CONFIGURATION = ("method", "network", "precision", "batch_size")
PLAIN_METHODS = ("standard", "at", "trades", "mart")  # those that `plain.Plain` knows
COLUMNS = (
    ("method", "method", ""), ("network", "network", ""), ("precision", "precision", ""), ("batch", "batch_size", ""),
    ("parts", "accumulate", ""), ("variant", "variant", ""), ("images/s", "images_per_second", ".1f"),
    ("low", "lowest", ".1f"), ("high", "highest", ".1f"), ("step s", "step", ".3f"), ("attack s", "attack", ".3f"),
    ("outer s", "outer", ".3f"), ("GFLOP/s", "gflops", ".1f"), ("of matrix", "share", ".0%"),
    ("MiB", "mebibytes", ".0f"), ("first s", "first", ".1f"), ("vs plain", "vs_plain", ".2f"),
)  # fmt: skip
OVERHEADS = (("overhead", "name", ""), ("ms", "milliseconds", ".3f"), ("share", "share", ".2%"), ("of", "of", ""))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=measure.names, default=["mart"])
    parser.add_argument("--networks", type=measure.names, default=["resnet18"])
    parser.add_argument("--batch_sizes", type=measure.numbers, default=[128])
    parser.add_argument("--precisions", type=measure.names, default=["float32", "mixed_bfloat16"])
    parser.add_argument("--variants", type=measure.names, default=["keras_mart", "plain"])
    parser.add_argument("--accumulate", type=measure.numbers, default=[1], help="parts of a batch; not for plain")
    parser.add_argument("--attack_steps", type=measure.positive, default=10)
    parser.add_argument("--steps", type=measure.positive, default=5, help="timed steps of a process, after a first one")
    parser.add_argument("--rounds", type=measure.positive, default=3, help="processes for each variant")
    parser.add_argument("--overheads", action="store_true", help="also measure the progress bar and input pipelines")
    parser.add_argument("--json", help="file for the figures and all samples")
    given = parser.parse_args()
    if unknown := set(given.variants) - set(VARIANTS):
        parser.error(f"--variants must be among {', '.join(VARIANTS)}. Received: {', '.join(unknown)}")
    if "plain" in given.variants and (unknown := set(given.methods) - set(PLAIN_METHODS)):
        parser.error(f"The variant plain has only {', '.join(PLAIN_METHODS)}. Received: {', '.join(unknown)}")
    return given


def jobs_of(given):
    """Returns the jobs; the variants of a configuration are adjacent."""
    values = (given.methods, given.networks, given.precisions, given.batch_sizes, given.accumulate, given.variants)
    shared = {"attack_steps": given.attack_steps, "steps": given.steps}
    names = *CONFIGURATION, "accumulate", "variant"
    jobs = [dict(zip(names, each, strict=True)) | shared for each in itertools.product(*values)]
    return [job for job in jobs if job["variant"] != "plain" or job["accumulate"] == 1]


def figures(job, answers, matrix_flops):
    """Returns a row of the table from the answers of all rounds."""
    samples = [each["steps"] for each in answers]
    steps = list(itertools.chain(*samples))
    step = statistics.median(steps)
    attack = statistics.median(itertools.chain(*(each["attack"] for each in answers)))
    flops = job["batch_size"] * answers[0]["flops"] / step
    return {
        **job,
        "images_per_second": job["batch_size"] / step,
        "lowest": job["batch_size"] / max(steps),
        "highest": job["batch_size"] / min(steps),
        "step": step,
        "attack": attack,
        "outer": step - attack,
        "gflop_per_image": answers[0]["flops"] / 1e9,
        "gflops": flops / 1e9,
        "share": flops / matrix_flops,
        "mebibytes": max(each["memory"] for each in answers) / 2**20,
        "first": statistics.median(each["first"] - statistics.median(each["steps"]) for each in answers),
        "samples": samples,
        "attack_samples": [each["attack"] for each in answers],
    }


def overheads(given):
    """Returns the rows of the second table: the progress bar and the input pipelines relative to a training step."""
    job = {"method": given.methods[0], "batch_size": given.batch_sizes[0], "attack_steps": given.attack_steps}
    found = measure.run("overheads", job)
    return [{**row, "share": row["milliseconds"] / found["step"], "of": found["of"]} for row in found["rows"]]


def main():
    given = arguments()
    matrix = [("matrix", {"precision": precision}) for precision in given.precisions]
    jobs = jobs_of(given)
    answers = measure.alternate(matrix + [("step", job) for job in jobs], given.rounds)
    best = {
        job["precision"]: max(each["flops"] for each in found)
        for (_, job), found in zip(matrix, answers[: len(matrix)], strict=True)
    }
    pairs = zip(jobs, answers[len(matrix) :], strict=True)
    rows = [figures(job, found, best[job["precision"]]) for job, found in pairs]
    measure.compare(rows, CONFIGURATION, "plain")
    machine, matrix_gflops = measure.machine(), {precision: flops / 1e9 for precision, flops in best.items()}
    print(measure.line(machine))
    print("matrix product, GFLOP/s: " + measure.line({key: f"{rate:.1f}" for key, rate in matrix_gflops.items()}))
    measure.print_table(rows, COLUMNS)
    small = overheads(given) if given.overheads else []
    if small:
        measure.print_table(small, OVERHEADS)
    measure.write(given.json, machine=machine, matrix_gflops=matrix_gflops, rows=rows, overheads=small)


if __name__ == "__main__":
    main()
