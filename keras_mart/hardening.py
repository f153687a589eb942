"""Makes a trained classifier robust with one function call."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mart import checks, memory, optimizers
from keras_mart.attacks import PGD, Attack
from keras_mart.copying import copy_of
from keras_mart.evaluation import evaluate
from keras_mart.evaluation.presets import presets
from keras_mart.evaluation.table import WORST_CASE, Table
from keras_mart.methods import METHODS, AdversarialModel
from keras_mart.networks import adapted
from keras_mart.threats import Threat
from keras_mart.typing import Data

# As in "A simple fine-tuning is all you need" (Jeddi et al., 2012.13628), the rate rises slowly and falls soon.
WARM_UP = 0.3  # share of all steps
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
# PyTorch's default. With Keras's (0.99, in some networks 0.999) the statistics of natural training would remain.
BATCH_NORM_MOMENTUM = 0.9
STEPS, STEPS_IN_EPSILON = 10, 4  # number of PGD steps in training, and how many of them add up to epsilon
ADVERSARIAL = tuple(name for name, method in METHODS.items() if method.has_adversary)
VALIDATION, ROBUST = "pgd20", "robust"  # name of the default preset, and of the accuracy under it in tables


@dataclasses.dataclass(frozen=True, eq=False)
class Hardened:
    """Result of `harden`. Printing it shows the accuracies before and after, with 95% intervals.

    Attributes:
        model: the wrapped model, a `keras_mart.AdversarialModel`, with the weights of its best epoch. `.network` is the
            trained network, `.judged_network` the one that is evaluated and exported.
        before, after: tables of `keras_mart.evaluate`, with the accuracies "natural" and "robust".
        history: dictionary from names to lists with one value for each epoch, from `fit`.
        choices: lines of text with the settings, and the changes made to the network.
    """

    model: AdversarialModel
    before: Table
    after: Table
    history: dict[str, list[float]]
    choices: tuple[str, ...]

    def __str__(self) -> str:
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
    network: keras.Model,
    train: Data,
    validation: Data,
    *,
    threat: Threat,
    method: str | type[AdversarialModel] = "trades",
    epochs: int = 10,
    test: Data | None = None,
    preprocessing: str | float | None = None,
    attack: Attack | None = None,
    validation_attack: Attack | None = None,
    optimizer: keras.optimizers.Optimizer | str | None = None,
    learning_rate: float | None = None,
    weight_average: float | None = 0.995,
    batch_size: int = 128,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    verbose: int = 1,
    **arguments: Any,
) -> Hardened:
    """Makes a trained classifier robust: fine-tunes a copy of it by adversarial training.

    The network may end in a softmax or sigmoid, and may take images of another size than the data have: the copy is
    adapted to both (`keras_mart.networks`). Frozen layers stay frozen. The momentum of BatchNormalization is lowered to
    0.9 if it is larger, so that the statistics adapt to the new weights. The copy is trained under the strategy in
    scope, or else the network's own.

    Args:
        network: a built Keras classifier; it is not changed.
        train: batches of (images, labels) with a known number of batches, such as a `tf.data.Dataset`, or a pair of
            arrays. Images lie in [0, 1].
        validation: data of the same form, which choose the best epoch. Use examples that the network was not trained
            on and that are not in `test`.
        threat: the ball in which the network is to be robust, such as `keras_mart.Linf(4 / 255)`.
        method: a name such as at, mart, trades or hat, or a class such as `keras_mart.MART`. MMA needs additional data
            and arguments, HAT and RSLAD a `teacher`.
        epochs: number of passes over `train`.
        test: data for the evaluation before and after; `validation` by default, which slightly favours the best epoch.
        preprocessing: how the network's inputs differ from images in [0, 1], as in `keras_mart.networks.adapted`: "tf",
            "torch", "caffe" or the largest value, such as 255.
        attack: the training attack; by default PGD with 10 steps of epsilon / 4.
        validation_attack: the attack that chooses the best epoch and measures robustness; by default PGD with 20 steps
            of epsilon / 10.
        optimizer: by default SGD with Nesterov momentum of 0.9 and weight decay of 5e-4 (added to the gradient).
        learning_rate: the peak learning rate of the default optimizer, 0.05 by default: the rate rises from 0 over the
            first 30% of all steps, and falls to 0 along a cosine. Cannot be combined with `optimizer`.
        weight_average: decay of the moving average of the weights that is evaluated, or `None` for no average.
        batch_size: number of examples in a batch of arrays, and in evaluation.
        callbacks: callbacks for `fit`.
        seed: integer seed of the attacks.
        verbose: 0 for silent, 1 for the settings and progress, 2 for one line per epoch.
        **arguments: arguments of the method, such as `beta`.

    Returns:
        A `Hardened`.

    Raises:
        ValueError: the method is unknown or has no adversary; the network is wrapped, not built or entirely frozen, or
            cannot be copied or adapted; the number of batches is unknown.
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
            "`learning_rate` applies only to the default optimizer: set the rate of `optimizer` itself. "
            f"Received: learning_rate={learning_rate}, optimizer={optimizer!r}"
        )
    checks.unwrapped(network)
    train, shape = _with_shape(train)
    attack = attack or PGD(threat, STEPS, step_size=threat.epsilon / STEPS_IN_EPSILON)
    validation_attack = validation_attack or presets([VALIDATION], threat)[VALIDATION]
    settings = []
    with contextlib.nullcontext() if tf.distribute.has_strategy() else network.distribute_strategy.scope():
        if optimizer is None:
            rate = LEARNING_RATE if learning_rate is None else learning_rate
            optimizer, text = _optimizer(rate, epochs * _steps(train, batch_size))
            settings.append(text)
        copy, done = _adapted_copy(network, shape, preprocessing)
        model = method(copy, attack, seed=seed, weight_average=weight_average, **arguments)
        model.compile(optimizer, validation_attack=validation_attack)
    choices = (
        f"{network.name}: {'; '.join(done) or 'not changed'}.",
        f"Trained by {type(model).__name__} {arguments or ''}".rstrip() + f" against {attack};",
        *settings,
        f"weight average: {weight_average}; best epoch chosen and robustness measured under {validation_attack}.",
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
    # The best epoch's weights were restored, and with them its step counter, on which random numbers depend.
    model.step.assign(keras.ops.cast(model.optimizer.iterations, "int32"))
    return Hardened(model, before, measured(), fitted.history, choices)


def _with_shape(data):
    """Returns the data, arrays as a tuple, and the images' (height, width, channels), or `None` if it is not static."""
    if isinstance(data, (tuple, list)):
        data, first = tuple(data), tuple(data)
        if len(data) != 2:
            raise ValueError(f"`train` must be (images, labels) or batches of them. Received: {len(data)} arrays")
    else:
        data, first = checks.first_batch(data)
    shape = tf.TensorShape(checks.unpacked(first)[0].shape)[1:]
    return data, tuple(shape) if shape.is_fully_defined() else None


def _adapted_copy(network, shape, preprocessing):
    """Returns a copy of the network adapted to the data, and a list of the changes as text."""
    copy = copy_of(network)
    if copy is None:
        raise ValueError(f"`network` must be built: call it on a batch of images first. Received: {network!r}")
    model, done = adapted(copy, shape, preprocessing=preprocessing)
    if not model.trainable_variables:
        raise ValueError(
            f"`network` must have trainable weights: set its or its layers' `trainable`. Received: {network}"
        )
    normalisations = [each for each in memory.layers(copy) if isinstance(each, keras.layers.BatchNormalization)]
    slow = [each for each in normalisations if each.momentum > BATCH_NORM_MOMENTUM]
    for layer in slow:
        layer.momentum = BATCH_NORM_MOMENTUM
    if slow:
        done.append(f"the momentum of its BatchNormalization was lowered to {BATCH_NORM_MOMENTUM}")
    return model, done


def _steps(train, batch_size):
    """Returns the number of batches in an epoch."""
    if isinstance(train, tuple):
        return math.ceil(len(train[0]) / batch_size)
    steps = int(train.cardinality()) if isinstance(train, tf.data.Dataset) else getattr(train, "num_batches", None)
    if steps is None or steps < 1:
        raise ValueError(
            "`train` must have a known number of batches, on which the learning rate depends: set it with "
            "`dataset.apply(tf.data.experimental.assert_cardinality(steps))`, or pass an `optimizer`. "
            f"Received: {train}"
        )
    return steps


def _optimizer(rate, steps):
    warm_up = max(round(WARM_UP * steps), 1)
    cosine = keras.optimizers.schedules.CosineDecay(rate, max(steps - warm_up, 1))
    schedule = optimizers.Warmup(cosine, warm_up)
    text = f"SGD, Nesterov momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, rate 0 to {rate} to 0 in {steps} steps;"
    return optimizers.SGD(schedule, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY), text
