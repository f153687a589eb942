"""Compares AutoAttack with the official code: python -m benchmarks.autoattack --dataset=npz:mnist.npz --official=<dir>

The official code is a checkout of github.com/fra31/auto-attack. Both attack the same images and the same network, whose
weights are copied to PyTorch, with the same number of threads. They alternate in separate processes, one for each seed.
The networks are trained first, unless `--weights` contains them from an earlier run.

    left          accuracy in percent after the stage, for each seed
    official      seconds of the unmodified official code, from its own log: the median over the seeds
    first, again  seconds of `evaluate`: the first time, with tracing or compiling, and the second time
    ratio         keras_mart's seconds over the official code's, first and again: the median over the seeds

`whole` is a complete evaluation, including the natural accuracy and the official code's checks. PyTorch's threads wait
for each other without sleeping: if anything else runs on the cores, the official code takes several times as long, and
the figures are meaningless. On a GPU:

    python -m benchmarks.autoattack --official=auto-attack --dataset=npz:cifar10.npz --network=resnet18 \\
        --cases=adversarial:Linf:8/255 --examples=1000 --batch_size=1000 --epochs=3 --seeds=0
"""

import argparse
import fractions
import os
import pathlib
import statistics
import tempfile
from typing import NamedTuple

from benchmarks import measure

# With these epsilons each stage has examples to attack on `strided_cnn`, trained on MNIST for `--epochs`.
CASES = "plain:Linf:0.09,plain:L2:1.2,adversarial:Linf:0.23,adversarial:L2:2.1"
WHOLE = "whole"
TRAININGS = ("plain", "adversarial")
COLUMNS = (
    ("network", "training", ""), ("ball", "ball", ""), ("stage", "stage", ""), ("left, official", "left_official", ""),
    ("left", "left", ""), ("official", "official", ".1f"), ("first", "first", ".1f"), ("again", "again", ".1f"),
    ("ratio", "ratio_first", ".2f"), ("ratio again", "ratio_again", ".2f"),
)  # fmt: skip


class Case(NamedTuple):
    """The training of the network, and the norm and epsilon of the attack."""

    training: str
    norm: str
    epsilon: float


class Network(NamedTuple):
    """The network and data that both sides attack.

    Attributes:
        name: for `networks.build` and `official.build`.
        dataset: for `keras_mart.datasets.load`.
        examples: number of test images, the first ones.
        batch_size: batch size of the attacks.
        precision: dtype policy for keras_mart.
    """

    name: str
    dataset: str
    examples: int
    batch_size: int
    precision: str = "float32"


def case(text):
    """Parses `<training>:<norm>:<epsilon>` for argparse."""
    training, norm, epsilon = text.split(":")
    if training not in TRAININGS or norm not in ("Linf", "L2"):
        raise ValueError(text)
    return Case(training, norm, float(fractions.Fraction(epsilon)))


def cases(text):
    return [case(each) for each in measure.names(text)]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True, type=os.path.abspath, help="a checkout of the official code")
    parser.add_argument("--torch", help="a Python with PyTorch; by default this one or /usr/bin/python3")
    parser.add_argument("--dataset", required=True, help="for keras_mart.datasets.load, such as npz:mnist.npz")
    parser.add_argument("--network", default="strided_cnn", help="strided_cnn, resnet18 or wide_resnet_<depth>_<width>")
    parser.add_argument("--cases", type=cases, default=CASES, help="comma-separated <training>:<norm>:<epsilon>")
    parser.add_argument("--examples", type=measure.positive, default=500, help="test images, the first ones")
    parser.add_argument("--batch_size", type=measure.positive, default=500)
    parser.add_argument("--precision", default="float32", help="dtype policy of keras_mart's network")
    parser.add_argument("--seeds", type=measure.names, default="0,1,2")
    parser.add_argument("--threads", type=measure.positive, default=os.cpu_count())
    parser.add_argument(
        "--weights", type=os.path.abspath, help="folder in which the trained weights are saved and reused"
    )
    parser.add_argument(
        "--train_epsilon", type=fractions.Fraction, default="0.2", help="for adversarial training, Linf"
    )
    parser.add_argument("--epochs", type=measure.positive, default=2, help="adversarial epochs, after a plain one")
    parser.add_argument("--steps", type=measure.positive, help="batches in a training epoch, all by default")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--json", help="file for the figures and all samples; written after each seed")
    return parser.parse_args()


def prepare(run, network, training, folder, epsilon, epochs, **options):
    """Returns the paths of the weights and of the file for PyTorch; trains the network if there are no weights."""
    stem = f"{network.name}-{training}"
    weights, exported = folder / f"{stem}.weights.h5", folder / f"{stem}.npz"
    shared = {"network": network.name, "dataset": network.dataset}
    if not weights.exists():
        job = {"task": "train", "path": str(weights), "epsilon": epsilon, "plain_epochs": 1, "epochs": epochs}
        job |= {} if training == "adversarial" else {"plain_epochs": epochs, "epochs": 0}
        run("evaluation", {**job, **shared, **options})
    job = {"task": "export", "path": str(exported), "weights": str(weights), "examples": network.examples}
    run("evaluation", {**job, **shared})
    return str(weights), str(exported)


def run_ours(run, network, case, weights, seed, **options):
    """Runs `evaluation.autoattack` and returns its answer."""
    job = {"task": "evaluate", "attack": "autoattack", "variant": "keras_mart", "precision": network.precision}
    job |= {"network": network.name, "model": None, "weights": weights, "dataset": network.dataset, "seed": seed}
    job |= {"examples": network.examples, "batch_size": network.batch_size}
    return run("evaluation", {**job, "norm": case.norm, "epsilon": case.epsilon}, **options)


def run_official(run, network, case, exported, checkout, seed, **options):
    """Runs `official_autoattack.attack` and returns its answer."""
    job = {"checkout": checkout, "path": exported, "network": network.name, "norm": case.norm, "epsilon": case.epsilon}
    return run("official_autoattack", {**job, "batch_size": network.batch_size, "seed": seed}, **options)


def rows(case, pairs):
    """Yields a row for each stage and for the whole evaluation.

    Args:
        case: the `Case`.
        pairs: (our answer, the official code's) for each seed; `None` for no answer.
    """
    samples = [(_stages(mine), _stages(their)) for mine, their in pairs]
    names = dict.fromkeys(name for pair in samples for found in pair for name in found)
    for name in names:
        stages = [tuple(found.get(name, {}) for found in pair) for pair in samples]
        row = {"training": case.training, "ball": f"{case.norm} {case.epsilon:.4g}", "stage": name}
        row |= {"left": _percent(mine for mine, _ in stages), "left_official": _percent(their for _, their in stages)}
        row["official"] = _median(their.get("first") for _, their in stages)
        for key in ("first", "again"):
            row[key] = _median(mine.get(key) for mine, _ in stages)
            row[f"ratio_{key}"] = _median(
                mine[key] / their["first"] for mine, their in stages if mine.get(key) and their.get("first")
            )
        yield row


def _stages(answer):
    """Returns {stage: seconds of the first and second run, accuracy after it}."""
    if not answer:
        return {}
    runs = [answer.get("first_rows", answer["rows"]), answer["rows"]]
    found = {}
    for key, run in zip(("first", "again"), runs, strict=True):
        for each in run:
            stage = found.setdefault(each["attack"].removeprefix("autoattack/"), {"left": each["left"]})
            seconds = each["seconds"]
            stage[key] = sum(seconds) if isinstance(seconds, list) else seconds
    found.pop("autoattack", None)
    whole = answer.get("whole") or [None]
    whole = whole if isinstance(whole, list) else [whole]
    found[WHOLE] = {"left": list(found.values())[-1]["left"], **dict(zip(("first", "again"), whole, strict=False))}
    return found


def _percent(stages):
    return " ".join(f"{100 * each['left']:.1f}" if each else "-" for each in stages)


def _median(values):
    values = [each for each in values if each]
    return statistics.median(values) if values else None


def environment(threads, environ=os.environ):
    """Returns environment variables that set the number of threads of TensorFlow and PyTorch."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {**environ, **dict.fromkeys(names, str(threads))}


def compared(given, folder, torch):
    """Returns the rows of all cases, and prints those so far after each seed."""
    network = Network(given.network, given.dataset, given.examples, given.batch_size, given.precision)
    training = {"epochs": given.epochs, "steps": given.steps, "adam": given.learning_rate}
    mine = {"environment": environment(given.threads)}
    theirs = {**torch, "environment": environment(given.threads, torch["environment"])}
    paths = {
        each: prepare(measure.run, network, each, folder, float(given.train_epsilon), **training)
        for each in dict.fromkeys(each.training for each in given.cases)
    }
    pairs = {each: [] for each in given.cases}
    about = {"machine": measure.machine(), "arguments": {key: str(value) for key, value in vars(given).items()}}
    for seed in map(int, given.seeds):
        for each in given.cases:
            weights, exported = paths[each.training]
            pairs[each].append((
                run_ours(measure.run, network, each, weights, seed, **mine),
                run_official(measure.run, network, each, exported, given.official, seed, **theirs),
            ))  # fmt: skip
            found = list(rows(each, pairs[each]))
            print(f"seed {seed}", flush=True)
            measure.print_table(found, COLUMNS)
            measure.write(given.json, **about, answers={str(each): pair for each, pair in pairs.items()})
    return [row for each in given.cases for row in rows(each, pairs[each])]


def main():
    given = arguments()
    torch = measure.torch(given.torch)
    if torch is None:
        raise SystemExit("No Python with PyTorch was found. Give one as --torch.")
    print(measure.line(measure.machine()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(given.weights or folder)
        folder.mkdir(parents=True, exist_ok=True)
        found = compared(given, folder, torch)
    print("all seeds")
    measure.print_table(found, COLUMNS)


if __name__ == "__main__":
    main()
