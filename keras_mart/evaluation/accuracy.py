"""Accuracy under attacks, counted over a whole data set."""

import time

import keras
import numpy as np
import tensorflow as tf

from keras_mart import checks
from keras_mart.attacks.inference import network_of, predict
from keras_mart.evaluation.table import Table
from keras_mart.methods.wrapper import images_of


def evaluate(model, data, attacks, *, batch_size=128, seed=0, verbose=1):
    """Natural accuracy and the accuracy under each attack, over all examples.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        data: batches of (images, labels), as a `tf.data.Dataset` or any iterable; or a pair of arrays.
        attacks: name to attack.
        batch_size: used where the data are arrays.
        seed: integer; the same seed gives the same table.
        verbose: 0 for silence, 1 for a progress bar.

    Returns:
        A `Table`.

    Raises:
        ValueError: an attack called "natural", a batch size that is not positive, empty data, images outside [0, 1],
            labels that do not fit, or a model that does not return logits.
    """
    network = network_of(model)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    if "natural" in attacks:
        raise ValueError('`attacks` must not use the name "natural", which is taken. Received: ' + ", ".join(attacks))
    names = ["natural", *attacks]
    correct, seconds, examples = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0), 0
    bar = keras.utils.Progbar(_number_of_batches(data, batch_size), stateful_metrics=names, verbose=verbose)
    for number, (images, labels) in enumerate(_batches(data, batch_size)):
        checks.batch(network, images, labels)
        images = tf.cast(images, "float32")
        labels = np.reshape(labels, -1)
        for name in names:
            start = time.perf_counter()
            inputs = images if name == "natural" else attacks[name](network, images, labels, seed=[seed, number])
            correct[name] += int(np.sum(predict(network, inputs).numpy() == labels))
            seconds[name] += time.perf_counter() - start
        examples += len(labels)
        bar.update(number + 1, [(name, correct[name] / examples) for name in names])
    if not examples:
        raise ValueError("The data must not be empty. Received: no batch.")
    if bar.target is None:  # it could not know that this was the last batch
        bar.update(number + 1, finalize=True)
    return Table(examples, {name: correct[name] / examples for name in names}, seconds)


def check(model, data, attacks):
    """Raises ValueError where `evaluate` would, as far as the first batch tells."""
    if hasattr(data, "__next__"):
        raise ValueError(f"`data` must be readable again and again. Received: {data!r}")
    first = next(_batches(data, 1), None)
    if first is None:
        raise ValueError("The data must not be empty. Received: no batch.")
    checks.batch(network_of(model), *first)
    for name, attack in attacks.items():
        if name in ("natural", "adversarial") or not callable(attack) or isinstance(attack, type):
            raise ValueError(f"`attacks` must map a name of their own to attacks. Received: {name!r}: {attack!r}")


def _are_arrays(data):
    """Whether the data are (images, labels[, weights]) rather than, say, a list of two batches."""
    return isinstance(data, (tuple, list)) and len(data) in (2, 3) and not isinstance(data[0], (tuple, list))


def _slices(images, labels, batch_size):
    if len(images) != len(labels):
        raise ValueError(f"Each image needs a label. Received: {len(images)} images, {len(labels)} labels")
    for start in range(0, len(labels), batch_size):
        yield images[start : start + batch_size], labels[start : start + batch_size]


def _number_of_batches(data, batch_size):
    if _are_arrays(data):
        return -(-len(data[1]) // batch_size)
    known = int(data.cardinality()) if isinstance(data, tf.data.Dataset) else -1
    return known if known >= 0 else None


def _batches(data, batch_size):
    """Pairs of (images, labels) as arrays, without indices and weights."""
    if _are_arrays(data):
        data = _slices(data[0], data[1], batch_size)
    for batch in data:
        inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        yield np.asarray(images_of(inputs)), None if labels is None else np.asarray(labels)
