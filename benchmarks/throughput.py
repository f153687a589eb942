"""How fast training is: python -m benchmarks.throughput --networks=resnet18 --batch_sizes=128

The variants are the package as it is (`keras_mart`), without its fast views of networks (`unfolded`), and the same
training written the usual way in Keras (`plain`). Each measurement is a process of its own, the variants take turns.

    images/s, low, high   at the median of all timed steps; at the slowest and the fastest of them
    step, attack, outer   seconds of the median step; of its attack, timed by itself; and the rest
    GFLOP/s, of matrix    operations of convolutions and dense layers (`networks.training_flops`), and their share of the
                          rate that a product of 4096x4096 matrices in the same precision reaches, measured alongside
    MiB                   largest resident memory of a process, less that after importing the package
    first s               from the call of `fit` to the end of the first step, less the median step
    vs plain              how many times faster than `plain`, the median over the rounds
"""

import argparse
import itertools
import statistics

from benchmarks import measure

VARIANTS = ("keras_mart", "plain", "unfolded")
PLAIN_METHODS = ("standard", "at", "trades", "mart")  # those that `plain.Plain` knows
COLUMNS = (
    ("method", "method", ""), ("network", "network", ""), ("precision", "precision", ""), ("batch", "batch_size", ""),
    ("variant", "variant", ""), ("images/s", "images_per_second", ".1f"), ("low", "lowest", ".1f"),
    ("high", "highest", ".1f"), ("step s", "step", ".3f"), ("attack s", "attack", ".3f"), ("outer s", "outer", ".3f"),
    ("GFLOP/s", "gflops", ".1f"), ("of matrix", "share", ".0%"), ("MiB", "mebibytes", ".0f"), ("first s", "first", ".1f"),
    ("vs plain", "vs_plain", ".2f"),
)  # fmt: skip
OVERHEADS = (("overhead", "name", ""), ("ms", "milliseconds", ".3f"), ("share", "share", ".2%"), ("of", "of", ""))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=measure.names, default=["mart"])
    parser.add_argument("--networks", type=measure.names, default=["resnet18"])
    parser.add_argument("--batch_sizes", type=measure.numbers, default=[128])
    parser.add_argument("--precisions", type=measure.names, default=["float32", "mixed_bfloat16"])
    parser.add_argument("--variants", type=measure.names, default=["keras_mart", "plain"])
    parser.add_argument("--attack_steps", type=measure.positive, default=10)
    parser.add_argument("--steps", type=measure.positive, default=5, help="timed steps of a process, after a first one")
    parser.add_argument("--rounds", type=measure.positive, default=3, help="processes of each variant")
    parser.add_argument("--overheads", action="store_true", help="of the progress bar and the input pipeline, too")
    parser.add_argument("--json", help="file to keep the figures and all samples in")
    given = parser.parse_args()
    if unknown := set(given.variants) - set(VARIANTS):
        parser.error(f"--variants must be among {', '.join(VARIANTS)}. Received: {', '.join(unknown)}")
    if "plain" in given.variants and (unknown := set(given.methods) - set(PLAIN_METHODS)):
        parser.error(f"The variant plain knows {', '.join(PLAIN_METHODS)} only. Received: {', '.join(unknown)}")
    return given


def jobs_of(given):
    """The variants of one configuration come next to one another."""
    keys = ("method", "network", "precision", "batch_size", "variant")
    values = (given.methods, given.networks, given.precisions, given.batch_sizes, given.variants)
    shared = {"attack_steps": given.attack_steps, "steps": given.steps}
    return [{**dict(zip(keys, each, strict=True)), **shared} for each in itertools.product(*values)]


def figures(job, answers, matrix_flops):
    """A row of the table from the answers of all rounds."""
    steps = measure.pooled(answers, "steps")
    step, attack = statistics.median(steps), statistics.median(measure.pooled(answers, "attack"))
    rate = job["batch_size"] / step
    first = [each["first"] - statistics.median(each["steps"]) for each in answers]
    return {
        **job,
        "images_per_second": rate,
        "lowest": job["batch_size"] / max(steps),
        "highest": job["batch_size"] / min(steps),
        "step": step,
        "attack": attack,
        "outer": step - attack,
        "gflops": rate * answers[0]["flops"] / 1e9,
        "share": rate * answers[0]["flops"] / matrix_flops,
        "mebibytes": max(each["memory"] for each in answers) / 2**20,
        "first": statistics.median(first),
    }


def compare(rows, answers):
    """Adds to each row how it compares with `plain` in the same configuration."""
    configurations = [{**row, "variant": None} for row in ({key: row[key] for key in KEYS} for row in rows)]
    for row, configuration, ours in zip(rows, configurations, answers, strict=True):
        for other, theirs, candidate in zip(rows, answers, configurations, strict=True):
            if candidate == configuration and other["variant"] == "plain":
                row["vs_plain"] = measure.ratio([each["steps"] for each in ours], [each["steps"] for each in theirs])


def main():
    given = arguments()


if __name__ == "__main__":
    main()
