"""Measures the speed of evaluation: python -m benchmarks.attacks --network=resnet18 --batch_size=128 --examples=64

The variants are the package (`keras_mart`), the package without its fast views of networks (`unfolded`), and for PGD-20
the usual loop in Keras (`plain`). Each measurement runs in its own process; the variants alternate.

PGD-20 attacks one batch of random images on a network with random weights, whose cost is the same as of real ones.
AutoAttack skips misclassified images, so it needs a trained classifier: without `--model` it attacks digits on a
WideResNet that is adversarially trained for some seconds first.

    images               number of images that the attack, or the stage of AutoAttack, ran on
    images/s, low, high  in the median run, the slowest and the fastest
    gradients/s          gradients of single images per second
    left                 accuracy after the attack
    first s              additional time of the first run over a later one
    vs unfolded, vs plain  speed per image relative to that variant; the median over the rounds
"""

import argparse
import fractions
import itertools
import pathlib
import statistics
import tempfile

from benchmarks import measure

VARIANTS = ("keras_mart", "unfolded", "plain")
ATTACKS = ("pgd20", "autoattack")
CONFIGURATION = ("attack", "network", "precision")
COLUMNS = (
    ("attack", "attack", ""), ("network", "network", ""), ("precision", "precision", ""), ("variant", "variant", ""),
    ("images", "images", "d"), ("seconds", "seconds", ".2f"), ("images/s", "images_per_second", ".1f"),
    ("low", "lowest", ".1f"), ("high", "highest", ".1f"), ("gradients/s", "gradients_per_second", ".1f"),
    ("left", "left", ".1%"), ("first s", "first", ".1f"), ("vs unfolded", "vs_unfolded", ".2f"),
    ("vs plain", "vs_plain", ".2f"),
)  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", type=measure.names, default=list(ATTACKS))
    parser.add_argument("--network", default="resnet18", help="name in the zoo, for PGD-20")
    parser.add_argument("--model", help="a saved classifier, for all attacks; keeps its precision")
    parser.add_argument("--dataset", default="digits", help="the classifier's, for keras_mart.datasets.load")
    parser.add_argument("--epsilon", type=fractions.Fraction, default="0.15", help="such as 0.15 or 8/255")
    parser.add_argument("--examples", type=measure.positive, default=64, help="test images for AutoAttack")
    parser.add_argument("--batch_size", type=measure.positive, default=64)
    parser.add_argument("--precisions", type=measure.names, default=["float32"])
    parser.add_argument("--variants", type=measure.names, default=list(VARIANTS))
    parser.add_argument("--repeats", type=measure.positive, default=3, help="timed runs of PGD-20 in a process")
    parser.add_argument("--rounds", type=measure.positive, default=3, help="processes for each variant")
    parser.add_argument("--json", help="file for the figures and all samples")
    given = parser.parse_args()
    for name, known in (("attacks", ATTACKS), ("variants", VARIANTS)):
        if unknown := set(getattr(given, name)) - set(known):
            parser.error(f"--{name} must be among {', '.join(known)}. Received: {', '.join(unknown)}")
    return given


def jobs_of(given, weights):
    """Returns the jobs; the variants of a configuration are adjacent."""
    shared = {"task": "evaluate", "batch_size": given.batch_size, "repeats": given.repeats}
    shared |= {"epsilon": float(given.epsilon), "model": given.model and str(pathlib.Path(given.model).resolve())}
    jobs = []
    for attack, precision, variant in itertools.product(given.attacks, given.precisions, given.variants):
        job = {"attack": attack, "precision": precision, "variant": variant, **shared}
        if attack == "pgd20":
            dataset = given.dataset if given.model else None
            job |= {"network": given.network, "examples": given.batch_size, "dataset": dataset, "weights": None}
        else:
            job |= {"network": "digits", "examples": given.examples, "dataset": given.dataset, "weights": weights}
        if given.model:
            job["network"] = pathlib.Path(given.model).name
        if (attack, variant) != ("autoattack", "plain"):
            jobs.append(job)
    return jobs


def figures(job, answers):
    """Yields a row for the attack and one for each of its stages, from the answers of all rounds."""
    for rounds in zip(*(answer["rows"] for answer in answers), strict=True):
        samples = [[each / row["images"] for each in row["seconds"]] for row in rounds]
        if not all(samples):
            continue  # a stage without images to attack
        first, seconds = rounds[0], list(itertools.chain(*samples))
        median = statistics.median(seconds)
        yield {
            **{key: job[key] for key in ("network", "precision", "variant", "batch_size", "epsilon")},
            **{key: first.get(key) for key in ("attack", "images", "left")},
            "seconds": median * first["images"],
            "images_per_second": 1 / median,
            "lowest": 1 / max(seconds),
            "highest": 1 / min(seconds),
            "gradients_per_second": first["gradients"] / first["images"] / median if first["gradients"] else None,
            "first": None if "/" in first["attack"] else statistics.median(answer["first"] for answer in answers),
            "samples": samples,
        }


def measured(given, folder):
    """Returns all jobs and their answers; first trains the classifier that AutoAttack needs if none is given."""
    weights = None
    if "autoattack" in given.attacks and not given.model:
        weights = str(pathlib.Path(folder) / "digits.weights.h5")
        trained = measure.run("evaluation", {"task": "train", "path": weights, "epsilon": float(given.epsilon)})
        print(f"AutoAttack attacks digits on a WideResNet-10-2 that was trained for {trained['seconds']:.0f} seconds.")
    jobs = jobs_of(given, weights)
    return jobs, measure.alternate([("evaluation", job) for job in jobs], given.rounds)


def main():
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        jobs, answers = measured(given, folder)
    rows = [row for job, found in zip(jobs, answers, strict=True) for row in figures(job, found)]
    for base in ("unfolded", "plain"):
        measure.compare(rows, CONFIGURATION, base)
    machine = measure.machine()
    print(measure.line(machine))
    measure.print_table(rows, COLUMNS)
    measure.write(given.json, machine=machine, rows=rows)


if __name__ == "__main__":
    main()
