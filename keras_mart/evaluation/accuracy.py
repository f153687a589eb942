"""Accuracy under attacks, counted over a whole data set."""

import collections
import itertools
import numbers
import time
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from keras_mart import checks, distribution
from keras_mart.attacks import Attack, AutoAttack
from keras_mart.attacks.base import Rounds, as_seed
from keras_mart.attacks.inference import network_of, uses_xla
from keras_mart.attacks.survivors import attack_survivors, judge
from keras_mart.evaluation.progress import Progress
from keras_mart.evaluation.table import RESERVED, Table


def evaluate(model, data, attacks, *, batch_size=128, limit=None, stop_early=False, seed=0, verbose=1):
    """Natural accuracy and the accuracy under each attack, over all examples.

    A compound attack such as `AutoAttack` gets a row for each stage too, `<attack>/<stage>`: the accuracy after it.
    Attacks in rounds (APGDT, FABT, Square, AutoAttack) leave alone what is misclassified without them, and count it as
    misclassified; the others are run on every example.

    Several workers share the batches out, and each gets the whole table: the one that a single process would get. All
    of them must call it, with the same data.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        data: batches of (images, labels), as a `tf.data.Dataset` or any iterable; or a pair of arrays.
        attacks: name to attack.
        batch_size: used where the data are arrays.
        limit: number of examples, the first ones (of a DistributedDataset, the first of each worker); all by default.
        stop_early: `True` runs each attack only on what was classified correctly under all before it. That saves time
            where the worst case is all that matters; an attack's row is then the accuracy under it and all before it.
        seed: integer; the same seed gives the same table.
        verbose: 0 for silence, 1 for a progress bar, 2 for a line for each batch and stage.

    Returns:
        A `Table`.

    Raises:
        ValueError: attacks that cannot be named so, a batch size or limit that is not positive, empty data, images
            outside [0, 1], labels that do not fit, or a model that does not return logits. Arrays are looked through
            before the first attack; data that come batch by batch are looked at when they come, and the error's
            attribute `table` then has what this worker measured before, a `Table` or `None`.
    """
    network = network_of(model)
    _check_sizes(batch_size, limit)
    _check_names(attacks)
    if _are_arrays(data):  # they can be looked through before the first attack
        checks.batch(network, *(None if each is None else each[:limit] for each in data[:2]))
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
    strategy = getattr(network, "distribute_strategy", None)
    worker, workers = distribution.worker(strategy)
    # A distributed dataset has shared the data out already.
    stride = 1 if isinstance(data, tf.distribute.DistributedDataset) else workers
    batches = _number_of_batches(data, batch_size, limit)
    progress = Progress(batches and len(range(worker % stride, batches, stride)), verbose)
    parts, right, seen, size = {}, collections.Counter(), 0, 0
    for number, (images, labels) in enumerate(_batches(data, batch_size, limit)):
        try:
            checks.batch(network, images, labels)
            _check_images(attacks, images.shape)
        except ValueError as error:
            error.table = _joined(parts)
            if parts:
                error.add_note(f"The error's `table` has what was measured before, of {seen} examples.")
            raise
        if number % stride != worker % stride:
            continue
        images, labels = tf.clip_by_value(tf.cast(images, "float32"), 0, 1), np.reshape(labels, -1)
        size = max(size, len(labels)) if uses_xla(network) else len(labels)
        part = _judge(network, images, labels, size, attacks, [seed, number], stop_early, progress)
        parts[number, worker] = part
        right.update({name: np.sum(predicted == labels) for name, predicted in part.predictions.items()})
        seen += len(labels)
        progress.batch({name: count / seen for name, count in right.items()})
    progress.close()
    parts = {place: part for each in distribution.gathered(parts, strategy) for place, part in each.items()}
    if not parts:
        raise ValueError("The data must not be empty. Received: no batch.")
    return _joined(parts)


def _joined(parts):
    """The `Table` of all batches, `None` where there is none."""
    return Table.concatenate([part for _, part in sorted(parts.items())]) if parts else None


def _judge(network, images, labels, size, attacks, seed, stop_early, progress):
    """The `Table` of one batch, which is filled up to a size by examples that are there already."""
    real = np.arange(size) < len(labels)
    if not real.all():
        rows = np.resize(np.arange(len(labels)), size)
        images, labels = tf.gather(images, rows), labels[rows]
    targets = tf.cast(labels, "int32")
    start = time.perf_counter()
    judged = judge(network, images, targets)
    natural = judged.predicted
    predictions, seconds, gradients = {"natural": natural}, {"natural": time.perf_counter() - start}, {"natural": 0}
    worst = natural  # what each example was taken for when it was first misclassified
    for name, attack in attacks.items():
        before = worst if stop_early else natural
        spares = stop_early or isinstance(attack, (Rounds, AutoAttack))
        # Filling is attacked where all are, for the sake of the size.
        left = (before == labels) & real if spares else np.full(size, True)
        stages = {f"{name}/{stage}": each for stage, each in getattr(attack, "stages", {}).items()} or {name: attack}
        result = attack_survivors(network, stages, images, targets, as_seed(seed), left, judged, progress.round)
        after = {stage: np.where(left, predicted, before) for stage, predicted in result.predictions.items()}
        for stage, predicted in after.items():
            right = (predicted == labels)[left & real]
            progress.stage(stage, np.sum(right), len(right), result.seconds[stage])
        predictions[name] = list(after.values())[-1]
        worst = np.where(worst == labels, predictions[name], worst)
        seconds[name] = sum(result.seconds.values())
        costs = result.gradients
        if not spares:
            costs = {stage: cost and cost * int(np.sum(real)) // size for stage, cost in costs.items()}
        gradients[name] = None if None in costs.values() else sum(costs.values())
        predictions.update(after)
        seconds.update(result.seconds)
        gradients.update(costs)
    predictions = {name: each[real] for name, each in predictions.items()}
    return Table(labels[real], predictions, seconds, gradients, stop_early)


def check(model, data, attacks):
    """Raises ValueError where `evaluate` would, as far as arrays, or else the first batch, tell."""
    if hasattr(data, "__next__"):
        raise ValueError(f"`data` must be readable again and again. Received: {data!r}")
    _number_of_batches(data, 1, None)
    first = data[:2] if _are_arrays(data) else next(_batches(data, 1), None)
    if first is None:
        raise ValueError("The data must not be empty. Received: no batch.")
    checks.batch(network_of(model), *first)
    _check_names(attacks)
    _check_images(attacks, np.shape(first[0]))


def taken(data, batch_size, limit):
    """The first `limit` images and labels of any data, as arrays.

    Raises:
        ValueError: there are none.
    """
    _check_sizes(batch_size, limit)
    batches = list(_batches(data, batch_size, limit))
    if not batches or any(labels is None for _, labels in batches):
        raise ValueError("The data must be (images, labels), at least one. Received: no batch, or no labels.")
    return [np.concatenate(each) for each in zip(*batches, strict=True)]


def _check_sizes(batch_size, limit):
    checks.positive_integer(batch_size, "batch_size")
    if limit is not None:
        checks.positive_integer(limit, "limit")


def _check_images(attacks, shape):
    for attack in attacks.values():
        if isinstance(attack, Attack):
            attack.check_images(shape)


def _check_names(attacks):
    if not isinstance(attacks, Mapping):
        raise ValueError(f"`attacks` must map names to attacks. Received: {attacks!r}")
    for name, attack in attacks.items():
        taken_name = not isinstance(name, str) or name in RESERVED or "/" in name
        if taken_name or not callable(attack) or isinstance(attack, type):
            raise ValueError(
                f"`attacks` must map names to attacks; {', '.join(RESERVED)}, and names with a slash, are taken. "
                f"Received: {name!r}: {attack!r}"
            )


def _are_arrays(data):
    """Whether the data are (images, labels[, weights]) rather than, say, a list of two batches."""
    return isinstance(data, (tuple, list)) and len(data) in (2, 3) and not isinstance(data[0], (tuple, list, Mapping))


def _slices(images, labels, batch_size, limit):
    """As many batches as `batch_size` asks for, but of equal size: a tiny last one would cost as much time."""
    if len(images) != len(labels):
        raise ValueError(f"Each image needs a label. Received: {len(images)} images, {len(labels)} labels")
    images, labels = images[:limit], labels[:limit]
    ends = np.linspace(0, len(labels), -(-len(labels) // batch_size) + 1).astype(int)
    return ((images[start:end], labels[start:end]) for start, end in itertools.pairwise(ends))


def _number_of_batches(data, batch_size, limit):
    if _are_arrays(data):
        return -(-min(len(data[1]), limit or len(data[1])) // batch_size)
    if limit is not None or not isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        return None
    known = _cardinality(data)
    if known == tf.data.INFINITE_CARDINALITY:
        raise ValueError("Endless data need a `limit`. Received: a dataset that repeats for ever.")
    return known if known >= 0 else None


def _cardinality(data):
    if isinstance(data, tf.data.Dataset):
        return int(data.cardinality())
    return tf.data.INFINITE_CARDINALITY if data.num_batches is None else data.num_batches


def _batches(data, batch_size, limit=None):
    """Pairs of (images, labels) as arrays, without indices and weights, of at most `limit` examples altogether."""
    if _are_arrays(data):
        data = _slices(data[0], data[1], batch_size, limit)
    if isinstance(data, keras.utils.PyDataset):  # which ends only where it is asked how long it is
        count = data.num_batches
        data = map(data.__getitem__, itertools.count() if count is None else range(count))
    seen = 0
    for batch in data:
        images, _, labels, _ = checks.unpacked(batch)
        images = distribution.local(images)
        if images.ndim < 2:
            raise ValueError(f"The data must come in batches of images. Received: a batch of shape {images.shape}")
        labels = None if labels is None else distribution.local(labels)
        checks.in_batches(images, labels)
        images = images[: None if limit is None else limit - seen]
        seen += len(images)
        yield images, None if labels is None else labels[: len(images) if limit else None]
        if seen == limit:
            return
