"""Measures the cost of several workers and of saving: python -m benchmarks.distribution --workers=2

Workers are processes on this machine started by `km.launch`, each with its share of the cores. Compared functions
alternate in the same processes, after a round that compiles; workers start each turn together, and it lasts until the
slowest is done. Medians, minima and maxima over all rounds:

all-reduce  a training step of MART on `--batch_size` images divided among the workers ("together"); the step of each
            worker separately on its part, all at the same time ("alone": a second model in each process, outside the
            strategy); their difference in each round, which is messages and waiting. Then a step's messages by
            themselves, and the message that the command line adds. MiB are what a worker sends: 2 (n - 1) / n of the
            values. No input pipeline.
input       a batch of `--recipe_batch` images (32x32x3, cropped and flipped), in epochs that only read data:
            distributed as in `fit`, and not distributed. Shares of both are of a step together on as many images.
saving      in one process, in TMPDIR: the state for resuming, which also contains a copy of best.keras, and the files
            written at the end of an epoch. MiB are of new files. Shares are of 351 steps, CIFAR-10's epoch, on
            `--recipe_batch`.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

import keras_mart as km
from benchmarks import measure, overheads, step
from keras_mart import distribution
from keras_mart.cli import state
from keras_mart.cli.workdir import RunDirectory
from keras_mart.methods import Outputs

EPOCH = 351  # steps on CIFAR-10: 45,000 images, 128 at a time
COLUMNS = (
    ("part", "part", ""), ("network", "network", ""), ("what", "name", ""), ("ms", "median", ".2f"),
    ("least", "least", ".2f"), ("most", "most", ".2f"), ("MiB", "mebibytes", ".2f"), ("share", "share", ".3%"),
)  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=measure.names, default=list(PARTS))
    parser.add_argument("--workers", type=measure.positive, default=2)
    parser.add_argument("--network", default="resnet18", help="network that the workers train")
    parser.add_argument("--networks", type=measure.names, default=["small_cnn", "resnet18"], help="networks to save")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch_size", type=measure.positive, default=32, help="batch size of all workers together")
    parser.add_argument("--recipe_batch", type=measure.positive, default=128, help="batch size for input and saving")
    parser.add_argument("--attack_steps", type=measure.positive, default=10)
    parser.add_argument("--rounds", type=measure.positive, default=7)
    parser.add_argument("--json", help="file for the figures and all samples")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # a worker's part, network, folder for its answer
    given = parser.parse_args()
    if not set(given.parts) <= set(PARTS) or given.workers < 2 or given.batch_size % given.workers:
        parser.error(f"--parts must be among {', '.join(PARTS)}; --workers must be at least 2 and divide --batch_size")
    return given


def alternated(functions, rounds, strategy):
    """Returns {name: seconds of each round} without the first round, in which functions compile."""
    seconds = {name: [] for name in functions}
    for _ in range(1 + rounds):
        for name, function in functions.items():
            distribution.any_across_workers(False, strategy)  # waits for all
            seconds[name].append(overheads.seconds_of(function))
    return {name: samples[1:] for name, samples in seconds.items()}


def training_step(given, network, batch_size):
    """Returns a model and a function that runs the training step of `fit` on one fixed batch."""
    model, _ = step.compiled_model("keras_mart", "mart", network, batch_size, given.attack_steps)
    images, labels = next(iter(step.batches(model, batch_size, 1)))
    model.train_on_batch(images, labels)  # not timed: it resets the metrics, which in a cluster takes as long as a step
    return model, lambda: float(model.train_function(iter([(images, labels)]))["loss"])


def all_reduce(given, strategy, network, folder):
    """Measures steps and their messages; returns {name: seconds} and {name: MiB}."""
    local = given.batch_size // given.workers
    with strategy.scope():
        _, together = training_step(given, network, local)
    model, alone = training_step(given, network, local)
    reduced, metrics = sent(model, local)
    messages = {"messages of a step": [*reduced, *metrics]}
    messages |= {"message: all-reduce of the step": reduced, "messages: metrics": metrics}
    functions = {"step together": together, "step alone": alone}
    functions |= {name: summing(each, strategy) for name, each in messages.items()}
    functions["command line's message"] = lambda: distribution.any_across_workers(False, strategy)
    ring = 2 * (given.workers - 1) / given.workers / 2**20
    sizes = {name: ring * sum(t.numpy().nbytes for t in tf.nest.flatten(each)) for name, each in messages.items()}
    return alternated(functions, given.rounds, strategy), sizes


def sent(model, local):
    """Returns zeros in the shapes of a step's messages: the all-reduce of `methods/model.py`, and the metrics."""
    logits, zero, count = tf.zeros([local, model.network.output_shape[-1]]), tf.zeros([]), tf.zeros([], "int64")
    terms = model.loss_terms(tf.zeros([local], "int32"), Outputs(logits, logits, 0.0))
    states = [each for each in model.network.non_trainable_variables if each.value.dtype.is_floating]
    zeros = [tf.zeros_like(each.value) for each in [*states, *model.trainable_variables]]
    ranges = tf.zeros([tf.distribute.get_strategy().num_replicas_in_sync, 3, 2])
    # Statistics and gradients; the loss and its terms; the ranges of the data and the number of examples.
    return [[*zeros, *[zero] * (1 + len(terms)), ranges, zero]], 3 * [[zero], [count]]


def summing(messages, strategy):
    """Returns a function that sums each message over all workers, as a step does."""
    function = tf.function(lambda: strategy.run(lambda: [*map(distribution.all_reduce_sum, messages)]), autograph=False)
    return lambda: tf.nest.flatten(function())[0].numpy()


def sharding(given, strategy, network, folder):
    """Measures the input pipelines; returns {name: seconds} and no sizes."""
    plain = km.datasets.load(f"npz:{folder}/images.npz", batch_size=given.recipe_batch, augment="crop_flip")
    distributed = strategy.experimental_distribute_dataset(distribution.with_default_options(plain, strategy))
    batch = tf.function(lambda iterator: next(iterator), autograph=False)

    def epoch(data):
        iterator = iter(data)
        for _ in range(len(plain)):
            batch(iterator)

    functions = {
        "distributed": lambda: epoch(distributed),
        "plain, by one worker": lambda: distribution.is_chief(strategy) and epoch(plain),
        "plain, by each worker": lambda: epoch(plain),
    }
    seconds = alternated(functions, given.rounds, strategy)
    return {name: [each / len(plain) for each in samples] for name, samples in seconds.items()}, {}


def saving(given, strategy, network, folder):
    """Measures saving; returns {name: seconds} and {name: MiB}."""
    model, train = training_step(given, network, given.recipe_batch)
    run, rows = RunDirectory(folder / network), [{"epoch": 1, "loss": 0.0}]
    run.path.mkdir()
    functions = {
        "step": train,
        "best.keras, last.keras": lambda: run.record(model, rows, True),
        "last.keras": lambda: run.record(model, rows, False),
        "state": lambda: run.save(int(model.step), state.arrays(model), {"rows": rows}),
    }
    seconds = alternated(functions, given.rounds, strategy)
    new = list(max(run.checkpoints.path.iterdir()).iterdir())
    files = {"best.keras, last.keras": [run.best, run.last], "last.keras": [run.last], "state": new}
    return seconds, {name: sum(path.stat().st_size for path in paths) / 2**20 for name, paths in files.items()}


PARTS = {"all-reduce": all_reduce, "input": sharding, "saving": saving}


def measured(part, network, workers, folder):
    """Returns {name: seconds of the slowest worker in each round} and {name: MiB}."""
    command = [sys.executable, "-m", "benchmarks.distribution", *sys.argv[1:], "--job", part, network, folder]
    if status := km.launch(command, workers):
        sys.exit(status)
    answers = [json.loads((folder / f"{index}.json").read_text()) for index in range(workers)]
    return {name: np.max([seconds[name] for seconds, _ in answers], 0) for name in answers[0][0]}, answers[0][1]


def work(given, part, network, folder):
    """Runs in a worker: writes its measurements to the folder."""
    strategy = distribution.strategy("auto")
    keras.config.set_dtype_policy(given.precision)
    keras.utils.set_random_seed(0)
    answer = json.dumps(PARTS[part](given, strategy, network, pathlib.Path(folder)))
    pathlib.Path(folder, f"{distribution.worker(strategy)[0]}.json").write_text(answer)


def rows(given, folder):
    """Yields the rows of the table."""
    together = None
    jobs = [(part, name) for part in given.parts for name in (given.networks if part == "saving" else [given.network])]
    for part, network in jobs:
        seconds, mebibytes = measured(part, network, 1 if part == "saving" else given.workers, folder)
        whole = together and together * given.recipe_batch / given.batch_size
        if part == "all-reduce":
            seconds["difference"] = seconds["step together"] - seconds["step alone"]
            whole = together = np.median(seconds["step together"])
        elif part == "saving":
            whole = EPOCH * np.median(seconds["step"])
        for name, samples in seconds.items():
            median, least, most = (1000 * function(samples) for function in (np.median, np.min, np.max))
            yield {
                "part": part, "network": network, "name": name, "median": median, "least": least, "most": most,
                "mebibytes": mebibytes.get(name), "share": whole and median / 1000 / whole, "samples": list(samples),
            }  # fmt: skip


def main():
    given = arguments()
    if given.job:
        return work(given, *given.job)
    with tempfile.TemporaryDirectory() as folder:
        overheads.cifar_like(folder)
        table = list(rows(given, pathlib.Path(folder)))
    print(measure.line(measure.machine()))
    measure.print_table(table, COLUMNS)
    measure.write(given.json, machine=measure.machine(), arguments=vars(given), rows=table)


if __name__ == "__main__":
    main()
