"""A trained classifier made robust by one call."""

import contextlib
import dataclasses
import math

import keras
import tensorflow as tf

from keras_mart import checks, memory, optimizers
from keras_mart.attacks import PGD
from keras_mart.copying import copy_of
from keras_mart.evaluation import evaluate
from keras_mart.evaluation.presets import presets
from keras_mart.evaluation.table import WORST_CASE, Table
from keras_mart.methods import METHODS, AdversarialModel
from keras_mart.networks import adapted

# As in "A simple fine-tuning is all you need" (Jeddi et al., 2012.13628) the rate rises slowly and falls soon.
WARM_UP = 0.3  # share of all steps
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
# PyTorch's default. With Keras's (0.99, in some networks 0.999) the statistics would stay those of natural training.
BATCH_NORM_MOMENTUM = 0.9
STEPS, STEPS_IN_EPSILON = 10, 4  # of training's PGD, and how many of them make an epsilon
ADVERSARIAL = tuple(name for name, method in METHODS.items() if method.has_adversary)
VALIDATION, ROBUST = "pgd20", "robust"  # the preset by default; what tables call the accuracy under it


@dataclasses.dataclass(frozen=True, eq=False)
class Hardened:
    """What `harden` gives; printed, it shows the accuracies before and after, with 95% intervals.

    Attributes:
        model: the wrapped model, a `keras_mart.AdversarialModel`, with the weights of its best epoch. `.network` is
            trained, `.judged_network` what is evaluated and exported.
        before, after: `keras_mart.evaluate`'s tables, with the accuracies "natural" and "robust".
        history: name to list, one value for each epoch, as `fit` gives it.
        choices: what was chosen and what was done to the network, in words.
    """

    model: AdversarialModel
    before: Table
    after: Table
    history: dict
    choices: tuple

    def __str__(self):
        names = [name for name in self.after.accuracy if name != WORST_CASE]
        first = max(map(len, names))
        lines = [f"{'':<{first}}  {'before':<26}  {'after':<26}".rstrip()]
        for name in names:
            cells = []
            for table in (self.before, self.after):
                low, high = table.intervals[name]
                cells.append(f"{table[name]:>7.2%} ({low:.2%} to {high:.2%})")
            lines.append(f"{name:<{first}}  {cells[0]:<26}  {cells[1]}")
        return "\n".join([*lines, f"({self.after.examples:,} examples, 95% intervals)", *self.choices])


def harden(
    network,
    train,
    validation,
    *,
    threat,
    method="trades",
    epochs=10,
    test=None,
    preprocessing=None,
    attack=None,
    validation_attack=None,
    optimizer=None,
    learning_rate=None,
    weight_average=0.995,
    batch_size=128,
    callbacks=(),
    seed=0,
    verbose=1,
    **arguments,
):
    """Trains a copy of a classifier on from its weights, until it withstands small changes of its images.

    The network may end in a softmax or sigmoid, and may take images of another size than the data have: both is mended
    inside the copy (`keras_mart.networks`). What is frozen stays frozen. The momentum of BatchNormalization becomes 0.9
    where it is larger, so that the statistics become those of the new weights. The copy trains under the strategy in
    scope, or else under the network's.

    Args:
        network: a built Keras classifier; it is left as it is.
        train: batches of (images, labels) that tell their number, as a `tf.data.Dataset`; or a pair of arrays. Images
            lie in [0, 1].
        validation: the same; chooses the best epoch. Data that neither the network was trained on nor `test` holds.
        threat: the ball to withstand, such as `keras_mart.Linf(4 / 255)`.
        method: a name such as at, mart, trades or hat, or a class such as `keras_mart.MART`. MMA needs data and
            arguments of its own, HAT and RSLAD a `teacher`.
        epochs: number of passes over `train`.
        test: data to measure on before and after; `validation` by default, which flatters the best epoch a little.
        preprocessing: what the network wants instead of images in [0, 1], as in `keras_mart.networks.adapted`: "tf",
            "torch", "caffe" or the largest value, such as 255.
        attack: the attack in training; by default PGD of 10 steps of epsilon / 4.
        validation_attack: the attack that chooses the best epoch, and that is measured; by default PGD of 20 steps of
            epsilon / 10.
        optimizer: by default SGD with Nesterov's momentum of 0.9 and weight decay of 5e-4 (added to the gradient).
        learning_rate: the largest rate of the default optimizer, 0.05 by default: it rises from 0 over the first 30% of
            all steps, and falls by a cosine to 0. Of an optimizer of your own say it there.
        weight_average: decay of the moving average of the weights that is judged, `None` for none.
        batch_size: number of examples in a batch of arrays, and of evaluation.
        callbacks: for `fit`.
        seed: integer, of the attacks.
        verbose: 0 for silence, 1 for the choices and progress, 2 for a line for each epoch.
        **arguments: of the method, such as `beta`.

    Returns:
        A `Hardened`.

    Raises:
        ValueError: an unknown method or one without an adversary; a network that is wrapped, not built or wholly
            frozen, or that cannot be copied or bridged; data that do not tell their number of batches.
    """
    if isinstance(method, str):
        checks.one_of(method, ADVERSARIAL, "method")
        method = METHODS[method]
    if not method.has_adversary:
        raise ValueError(
            f"`method` must train against an adversary, as {', '.join(ADVERSARIAL)} do. Received: {method}"
        )
    if optimizer is not None and learning_rate is not None:
        raise ValueError(
            "`learning_rate` is that of the default optimizer: give yours to `optimizer`. "
            f"Received: learning_rate={learning_rate}, optimizer={optimizer!r}"
        )
    checks.unwrapped(network)
    train, shape = _with_shape(train)
    attack = attack or PGD(threat, STEPS, step_size=threat.epsilon / STEPS_IN_EPSILON)
    validation_attack = validation_attack or presets([VALIDATION], threat)[VALIDATION]
    chosen = []
    with contextlib.nullcontext() if tf.distribute.has_strategy() else network.distribute_strategy.scope():
        if optimizer is None:
            optimizer, text = _optimizer(learning_rate or LEARNING_RATE, epochs * _steps(train, batch_size))
            chosen.append(text)
        copy, done = _prepared(network, shape, preprocessing)
        model = method(copy, attack, seed=seed, weight_average=weight_average, **arguments)
        model.compile(optimizer, validation_attack=validation_attack)
    choices = (
        f"{network.name}: {'; '.join(done) or 'taken as it is'}.",
        f"Trained by {type(model).__name__} {arguments or ''}".rstrip() + f" against {attack};",
        *chosen,
        f"weights averaged: {weight_average}; chosen and measured under {validation_attack}.",
    )
    if verbose:
        print("\n".join(choices), flush=True)

    def measured():
        data = validation if test is None else test
        return evaluate(model, data, {ROBUST: validation_attack}, batch_size=batch_size, seed=seed, verbose=verbose)

    before = measured()
    best = keras.callbacks.EarlyStopping(
        "val_adversarial_accuracy", mode="max", patience=epochs, restore_best_weights=True
    )
    inputs = dict(zip(("x", "y"), train, strict=True)) if isinstance(train, tuple) else {"x": train}
    fitted = model.fit(
        **inputs, batch_size=batch_size if isinstance(train, tuple) else None, epochs=epochs,
        validation_data=validation, callbacks=[*callbacks, best], verbose=verbose,
    )  # fmt: skip
    # The best epoch's weights are back, and with them its number of steps, from which random numbers follow.
    model.step.assign(keras.ops.cast(model.optimizer.iterations, "int32"))
    return Hardened(model, before, measured(), fitted.history, choices)


def _with_shape(data):
    """The data, arrays as a tuple, and the (height, width, channels) of the images, `None` where it is open."""
    if isinstance(data, (tuple, list)):
        data, first = tuple(data), tuple(data)
        if len(data) != 2:
            raise ValueError(f"`train` must be (images, labels) or batches of them. Received: {len(data)} arrays")
    else:
        data, first = checks.first_batch(data)
    shape = tf.TensorShape(checks.unpacked(first)[0].shape)[1:]
    return data, tuple(shape) if shape.is_fully_defined() else None


def _prepared(network, shape, preprocessing):
    """A copy of the network, as training needs it, and what was done to it."""
    copy = copy_of(network)
    if copy is None:
        raise ValueError(f"`network` must be built: call it on a batch of images first. Received: {network!r}")
    prepared, done = adapted(copy, shape, preprocessing=preprocessing)
    if not prepared.trainable_variables:
        raise ValueError(
            f"`network` must have trainable weights: set `trainable` of it or its layers. Received: {network}"
        )
    of_batches = [each for each in memory.layers(copy) if isinstance(each, keras.layers.BatchNormalization)]
    slow = [each for each in of_batches if each.momentum > BATCH_NORM_MOMENTUM]
    for layer in slow:
        layer.momentum = BATCH_NORM_MOMENTUM
    if slow:
        done.append(f"the momentum of its BatchNormalization was lowered to {BATCH_NORM_MOMENTUM}")
    return prepared, done


def _steps(train, batch_size):
    """The number of batches in an epoch."""
    if isinstance(train, tuple):
        return math.ceil(len(train[0]) / batch_size)
    steps = int(train.cardinality()) if isinstance(train, tf.data.Dataset) else getattr(train, "num_batches", None)
    if steps is None or steps < 1:
        raise ValueError(
            "`train` must tell its number of batches, by which the learning rate falls: "
            "`dataset.apply(tf.data.experimental.assert_cardinality(steps))` says it. An `optimizer` of your own needs "
            f"none. Received: {train}"
        )
    return steps


def _optimizer(rate, steps):
    warm_up = max(round(WARM_UP * steps), 1)
    cosine = keras.optimizers.schedules.CosineDecay(rate, max(steps - warm_up, 1))
    schedule = optimizers.Warmup(cosine, warm_up)
    text = f"SGD, Nesterov momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, rate 0 to {rate} to 0 in {steps} steps;"
    return optimizers.SGD(schedule, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY), text
