"""Accuracy under attacks, stage by stage over a whole data set."""

import numbers
import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from keras_mart import checks, distribution
from keras_mart.attacks import Attack
from keras_mart.attacks.base import as_seed
from keras_mart.attacks.inference import network_of
from keras_mart.attacks.survivors import CallableAttack, Examples, run_round
from keras_mart.evaluation import examples, record
from keras_mart.evaluation.books import Books, part_of, plan
from keras_mart.evaluation.precision import precision_of, with_precision
from keras_mart.evaluation.progress import Progress
from keras_mart.evaluation.state import Nowhere, State
from keras_mart.evaluation.table import RESERVED
from keras_mart.randomness import example_seeds


def evaluate(
    model,
    data,
    attacks,
    *,
    batch_size=128,
    limit=None,
    stop_early=False,
    seed=0,
    verbose=1,
    state=None,
    precision="float32",
    class_names=None,
):
    """Natural accuracy and the accuracy under each attack, over all examples.

    All data are read and looked through first. Then each attack, and each stage and round of it, runs on all the
    examples that are left to it, in full batches. A compound attack such as `AutoAttack` gets a row for each stage too,
    `<attack>/<stage>`: the accuracy after it. Attacks in rounds (APGDT, FABT, Square, AutoAttack) leave alone what is
    misclassified without them, and count it as misclassified; the others are run on every example.

    The table depends on the seed but, but for rounding, not on the batch size. Under a strategy that the model was made
    in, every replica attacks its share of each batch. Several workers share the examples out, and each gets the whole
    table: the one that a single process would get. All of them must call it, with the same data.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        data: batches of (images, labels), as a `tf.data.Dataset` or any iterable; or a pair of arrays. They must fit
            in the machine's memory.
        attacks: name to attack: a `keras_mart.Attack`, or a callable of (network, images, labels, seed), where the seed
            is [2] integers, others for each batch.
        batch_size: number of examples that are attacked at once.
        limit: number of examples, the first ones (of a DistributedDataset, the first of each worker); all by default.
        stop_early: `True` runs each attack only on what was classified correctly under all before it. That saves time
            where the worst case is all that matters; an attack's row is then the accuracy under it and all before it.
        seed: integer; the same seed gives the same table.
        verbose: 0 for silence, 1 for a line of progress, 2 for a line for each round.
        state: folder in which each batch that is done is kept. Called again with the same arguments (another
            `batch_size` will do), it goes on from there, and ends with the same table.
        precision: "float32" judges and attacks a network of lower precision, such as mixed_bfloat16, as a copy that
            computes in float32. `None` takes the network as it is.
        class_names: names of the classes, for the table.

    Returns:
        A `Table`.

    Raises:
        ValueError: attacks that cannot be named so, a batch size or limit that is not positive, empty data, images
            outside [0, 1], labels that do not fit, a model that does not return logits or that cannot be copied, or a
            `state` that another process uses or that is of another evaluation.
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
    said = _record(network, images, labels, attacks, seed, limit, stop_early)

    strategy = getattr(network, "distribute_strategy", None)
    worker, workers = distribution.worker(strategy)
    if not isinstance(data, tf.distribute.DistributedDataset):  # of which each worker has its own part already
        images, labels = images[worker::workers], labels[worker::workers]
    places = np.arange(len(labels), dtype="int32") * workers + worker
    own = Examples(images, labels, np.asarray(example_seeds(as_seed(seed), places)))

    books, steps = Books(labels, stop_early), plan(attacks, own.seeds, classes, images.shape)
    kept = Nowhere() if state is None else State(_of_worker(state, worker, workers), said)
    size = max(min(batch_size, len(labels)), 1)
    with kept.opened():
        _run(network, own, steps, books, kept, size, Progress(len(labels), verbose))
    return books.table(places, strategy, class_names, said)


def _run(network, own, steps, books, kept, size, progress):
    """Takes all steps that are not done yet, and keeps what is done after each batch."""
    books.restore(kept.done())
    for index in range(books.steps, len(steps)):
        step = steps[index]
        books.begin(step, own.images.shape)
        which = np.flatnonzero(books.standing.left)
        for part in kept.parts(index):
            books.take(step, part)
            which = np.setdiff1d(which, part["rows"])
        progress.begin(step, len(which))
        start, candidates = time.perf_counter(), books.standing.candidates
        for found in run_round(
            network, step.attack, own._replace(seeds=step.seeds), which, size, step.number, candidates
        ):
            part = part_of(step, found)
            part["seconds"] = time.perf_counter() - start
            books.take(step, part)
            kept.add(index, found.rows[0], part)
            progress.batch(len(found.rows))
            start = time.perf_counter()
        books.end(step)
        progress.end(step, int(np.sum(books.standing.left)), books.seconds[step.row])
        kept.finish(books.arrays)


def check(model, data, attacks):
    """Raises ValueError where `evaluate` would, as far as arrays, or else the first batch, tell."""
    network = network_of(model)
    images, labels = examples.first(data)
    checks.batch(network, images, labels)
    _check_attacks(attacks)
    _check_task(network, np.asarray(images[:1]), attacks)


def _record(network, images, labels, attacks, seed, limit, stop_early):
    """What the evaluation is of, as `Table.record` says it."""
    return {
        "threat": record.common_threat(attacks.values()),
        "attacks": {name: record.attack(attack) for name, attack in attacks.items()},
        "precision": precision_of(network),
        "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),  # which only GPUs have
        "seed": int(seed),
        "limit": limit and int(limit),
        "stop_early": stop_early,
        "versions": record.versions(),
        "architecture_sha256": record.architecture_sha256(network),
        "weights_sha256": record.weights_sha256(network),
        "data_sha256": record.data_sha256(images, labels),
    }


def _of_worker(state, worker, workers):
    return state if workers == 1 else f"{state}/{worker}-of-{workers}"


def _check_attacks(attacks, state=None):
    if not isinstance(attacks, Mapping):
        raise ValueError(f"`attacks` must map names to attacks. Received: {attacks!r}")
    for name, attack in attacks.items():
        taken_name = not isinstance(name, str) or name in RESERVED or "/" in name
        if taken_name or not callable(attack) or isinstance(attack, type):
            raise ValueError(
                f"`attacks` must map names to attacks; {', '.join(RESERVED)}, and names with a slash, are taken. "
                f"Received: {name!r}: {attack!r}"
            )
        if state is not None and not isinstance(attack, Attack):
            raise ValueError(f"`state` needs attacks that are told by their parameters. Received: {name!r}: {attack!r}")


def _check_task(network, image, attacks):
    for attack in attacks.values():
        if isinstance(attack, Attack):
            attack.check_task(network, image)


def _check_class_names(names, labels):
    if names is not None and len(names) <= labels.max():
        raise ValueError(f"`class_names` must name each class. Received: {len(names)} names, and label {labels.max()}")
