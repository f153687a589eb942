"""Accuracy under attacks, computed stage by stage over a whole dataset."""

import numbers
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_mart import checks, distribution
from keras_mart.attacks import Attack
from keras_mart.attacks.base import as_seed
from keras_mart.attacks.inference import network_of
from keras_mart.attacks.survivors import CallableAttack, Examples, run_round
from keras_mart.evaluation import examples
from keras_mart.evaluation.precision import precision_of, with_precision
from keras_mart.evaluation.progress import Progress
from keras_mart.evaluation.record import architecture_sha256, common_threat, data_sha256, versions, weights_sha256
from keras_mart.evaluation.record import attack as attack_record
from keras_mart.evaluation.results import Results, batch_arrays, plan
from keras_mart.evaluation.state import NoState, State
from keras_mart.evaluation.table import RESERVED, Table
from keras_mart.randomness import example_seeds
from keras_mart.typing import Data


def evaluate(
    model: keras.Model,
    data: Data | Iterable,
    attacks: Mapping[str, Attack | Callable],
    *,
    batch_size: int = 128,
    limit: int | None = None,
    stop_early: bool = False,
    seed: int = 0,
    verbose: int = 1,
    state: str | os.PathLike | None = None,
    precision: str | None = "float32",
    class_names: Sequence[str] | None = None,
) -> Table:
    """Computes the natural accuracy and the accuracy under each attack.

    All data are read and checked first. Then each attack, stage by stage and round by round, runs in full batches on
    the examples that it still has to attack. A compound attack such as `AutoAttack` also gets a row for each stage,
    `<attack>/<stage>`: the accuracy after that stage. Attacks in rounds (APGDT, FABT, Square, AutoAttack) skip examples
    that are misclassified without an attack, and count them as misclassified; the others run on every example.

    The table depends on the seed but, except for rounding, not on the batch size. If the model was created under a
    distribution strategy, every replica attacks its share of each batch. Several workers divide the examples among
    themselves, and each returns the whole table, the same that a single process would. Every worker must call this,
    with the same data.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        data: batches of (images, labels), as a `tf.data.Dataset` or any iterable; or a pair of arrays. They must fit
            in the machine's memory.
        attacks: mapping from names to attacks: a `keras_mart.Attack`, or a callable of (network, images, labels, seed),
            where the seed is [2] integers that differ from batch to batch.
        batch_size: number of examples attacked at once.
        limit: number of examples to evaluate, from the start of the data (for a DistributedDataset, of each worker's
            part); all by default.
        stop_early: if `True`, each attack runs only on the examples classified correctly under all attacks before it.
            This saves time when only the worst case matters; an attack's row then counts the attacks before it too.
        seed: integer; the same seed gives the same table.
        verbose: 0 for silent, 1 for a progress line, 2 for a line per round.
        state: folder in which each finished batch is saved. Called again with the same arguments (`batch_size` may
            differ), the evaluation resumes from there and ends with the same table.
        precision: "float32" evaluates a network of lower precision, such as mixed_bfloat16, through a copy that
            computes in float32. `None` evaluates the network as it is.
        class_names: names of the classes, for the table.

    Returns:
        A `Table`.

    Raises:
        ValueError: if an attack has an invalid name, the batch size or limit is not positive, the data are empty,
            images lie outside [0, 1], labels do not fit, the model does not return logits or cannot be copied, or
            `state` is in use by another process or belongs to another evaluation.
    """
    network = with_precision(network_of(model), precision)
    checks.positive_integer(batch_size, "batch_size")
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
    _check_attacks(attacks, state)
    attacks = {name: each if isinstance(each, Attack) else CallableAttack(each) for name, each in attacks.items()}
    images, labels = examples.read(network, data, limit)
    classes = checks.classes(network, images)
    _check_task(network, images[:1], attacks)
    _check_class_names(class_names, labels)
    record = _record(network, images, labels, attacks, seed, limit, stop_early)

    strategy = getattr(network, "distribute_strategy", None)
    worker, workers = distribution.worker(strategy)
    if not isinstance(data, tf.distribute.DistributedDataset):  # each worker already has only its part of one
        images, labels = images[worker::workers], labels[worker::workers]
    positions = np.arange(len(labels), dtype="int32") * workers + worker
    own = Examples(images, labels, np.asarray(example_seeds(as_seed(seed), positions)))

    results, steps = Results(labels, stop_early), plan(attacks, own.seeds, classes, images.shape)
    saved = NoState() if state is None else State(_worker_folder(state, worker, workers), record)
    size = max(min(batch_size, len(labels)), 1)
    with saved.opened():
        _run(network, own, steps, results, saved, size, Progress(len(labels), verbose))
    return results.table(positions, strategy, class_names, record)


def _run(network, own, steps, results, saved, size, progress):
    """Runs all steps that are not done yet, and saves each batch when it is done."""
    results.restore(saved.done())
    for index in range(results.steps, len(steps)):
        step = steps[index]
        results.begin(step, own.images.shape)
        remaining = np.flatnonzero(results.standing.left)
        for part in saved.parts(index):
            results.add(step, part)
            remaining = np.setdiff1d(remaining, part["rows"])
        progress.begin(step, len(remaining))
        start, candidates = time.perf_counter(), results.standing.candidates
        for found in run_round(
            network, step.attack, own._replace(seeds=step.seeds), remaining, size, step.number, candidates
        ):
            part = batch_arrays(step, found)
            part["seconds"] = time.perf_counter() - start
            results.add(step, part)
            saved.add(index, found.rows[0], part)
            progress.batch(len(found.rows))
            start = time.perf_counter()
        results.end(step)
        progress.end(step, int(np.sum(results.standing.left)), results.seconds[step.row])
        saved.finish(results.arrays)


def check(model: keras.Model, data: Data | Iterable, attacks: Mapping[str, Attack | Callable]) -> None:
    """Checks the arguments of `evaluate` without running it, on whole arrays or the first batch of other data.

    Raises:
        ValueError: as in `evaluate`; or if the data can be read only once.
    """
    network = network_of(model)
    images, labels = examples.first(data)
    checks.batch(network, images, labels)
    _check_attacks(attacks)
    _check_task(network, np.asarray(images[:1]), attacks)


def _record(network, images, labels, attacks, seed, limit, stop_early):
    """Returns the description of an evaluation that `Table.record` keeps."""
    return {
        "threat": common_threat(attacks.values()),
        "attacks": {name: attack_record(attack) for name, attack in attacks.items()},
        "precision": precision_of(network),
        "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),  # affects GPUs only
        "seed": int(seed),
        "limit": limit and int(limit),
        "stop_early": stop_early,
        "versions": versions(),
        "architecture_sha256": architecture_sha256(network),
        "weights_sha256": weights_sha256(network),
        "data_sha256": data_sha256(images, labels),
    }


def _worker_folder(state, worker, workers):
    return state if workers == 1 else f"{state}/{worker}-of-{workers}"


def _check_attacks(attacks, state=None):
    if not isinstance(attacks, Mapping):
        raise ValueError(f"`attacks` must map names to attacks. Received: {attacks!r}")
    for name, attack in attacks.items():
        invalid_name = not isinstance(name, str) or name in RESERVED or "/" in name
        if invalid_name or not callable(attack) or isinstance(attack, type):
            raise ValueError(
                f"`attacks` must map names to attacks; {', '.join(RESERVED)}, and names with a slash, are reserved. "
                f"Received: {name!r}: {attack!r}"
            )
        if state is not None and not isinstance(attack, Attack):
            raise ValueError(
                "`state` needs `keras_mart.Attack` objects, whose parameters it can compare. "
                f"Received: {name!r}: {attack!r}"
            )


def _check_task(network, image, attacks):
    for attack in attacks.values():
        if isinstance(attack, Attack):
            attack.check_task(network, image)


def _check_class_names(names, labels):
    if names is not None and len(names) <= labels.max():
        raise ValueError(f"`class_names` must name each class. Received: {len(names)} names, and label {labels.max()}")
