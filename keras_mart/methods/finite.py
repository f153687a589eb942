"""What becomes of a training step whose loss or gradient is not finite: training stops and says why, or goes on.

Whether a step counts is a scalar boolean tensor, the same on all replicas. Data that are wrong always stop it.
"""

import contextlib
import re

import keras
import tensorflow as tf

from keras_mart import checks, distribution

ON_NAN = ("stop", "skip")
# Mark the message inside TensorFlow's own.
BEGIN, END = "<not finite>", "</not finite>"
NOT_FINITE = "Loss and gradient must be finite."


@contextlib.contextmanager
def explained():
    """Turns TensorFlow's error, if it comes from here, into a FloatingPointError or, for wrong data, a ValueError."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(f"{BEGIN}(.*?){END}", str(error), re.DOTALL)
        if found is None:
            raise
        raise (FloatingPointError if found[1].startswith(NOT_FINITE) else ValueError)(found[1]) from None


def agree(model, batch, found, examples):
    """What the replicas' passes over a batch come to together; deals with what is not finite as `on_nan` says.

    Args:
        model: the `AdversarialModel`.
        batch: the replica's `Batch`.
        found: the replica's `Pass`.
        examples: number of examples of all replicas.

    Returns:
        The batch and the pass, with the states averaged, and without examples where the step does not count; whether
        it counts.
    """
    terms = {"loss": found.values, **found.terms}
    terms = {name: tf.reduce_sum(tf.where(batch.real > 0, each, 0.0)) / examples for name, each in terms.items()}
    terms = distribution.total({**terms, "replicas whose gradient is not finite": _overflows(found.gradients)})
    overflows = terms["replicas whose gradient is not finite"]
    gradients, counts = found.gradients, tf.math.is_finite(terms["loss"])
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        # It leaves out by itself what overflows, but goes by what the first replica sees.
        gradients = [each if each is None else _spoilt(each, overflows > 0) for each in gradients]
    else:
        counts &= overflows == 0
    step = tf.strings.format("step {}", model.step + 1)
    good, said = _data(model, batch, found.outputs, step)
    if model.on_nan == "stop":
        said = tf.where(good, tf.strings.join([f"{NOT_FINITE} Received at ", step, _values(terms)]), said)
        *gradients, index, real = _stop(good & counts, said, [*gradients, batch.index, batch.real])
    else:
        *gradients, index, real = _stop(good, said, [*gradients, batch.index, batch.real])
        _warn(counts, tf.strings.join([step, _values(terms)]))
    states = distribution.mean(found.states, tf.reduce_sum(batch.real) / examples)
    counts &= good
    found = found._replace(gradients=gradients, states=states, values=tf.where(counts, found.values, 0.0))
    # Neither the metrics nor a method's memory may see a step that does not count.
    return batch._replace(real=tf.where(counts, real, 0.0), index=index), found, counts


def refuse(model, batch, outputs):
    """The batch, which cannot be had where its data are wrong: an error comes instead."""
    good, said = _data(model, batch, outputs, "evaluation")
    return batch._replace(real=_stop(good, said, [batch.real])[0])


def _data(model, batch, outputs, where):
    """Whether the images, labels and index of all replicas are what they must be, and what to say if not."""
    rules = [
        ("Images", "values", "[0, 1] and hold no NaN", batch.extremes, -checks.ROUNDING, 1 + checks.ROUNDING),
        ("Labels", "labels", f"[0, {outputs.natural.shape[-1]})", batch.labels, 0, outputs.natural.shape[-1] - 1),
    ]
    if batch.index is not None and model.needs_index:
        count = model.num_examples
        rules.append(("Indices", "indices", f"[0, num_examples={count})", batch.index, 0, count - 1))
    tensors = [tf.cast(tensor, "float64") for _, _, _, tensor, _, _ in rules]
    extremes = distribution.everywhere(tf.stack([[tf.reduce_min(each), tf.reduce_max(each)] for each in tensors]))
    good, said = True, tf.constant("")
    for number, (what, values, rule, _, least, most) in reversed(list(enumerate(rules))):
        low, high = extremes[:, number, 0], extremes[:, number, 1]
        right = tf.reduce_all((low >= least) & (high <= most))
        hint = f" {checks.IMAGE_RULE}" if what == "Images" else ""
        found = tf.strings.format(f": {values} from {{}} to {{}}.{hint}", [tf.reduce_min(low), tf.reduce_max(high)])
        text = tf.strings.join([f"{what} must lie in {rule}. Received at ", where, found])
        good, said = good & right, tf.where(right, said, text)
    return good, said


def _overflows(gradients):
    """1 where one of this replica's gradients is not finite, 0 elsewhere."""
    finite = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients if gradient is not None]
    return 1.0 - tf.cast(tf.reduce_all(finite), "float32")


def _spoilt(gradient, overflow):
    return tf.where(overflow, tf.constant(float("nan"), gradient.dtype), gradient)


def _stop(counts, said, tensors):
    """The tensors, which cannot be had where the step does not count: an error that says why comes instead."""

    def fail():
        with tf.control_dependencies([tf.debugging.Assert(False, [tf.strings.join([BEGIN, said, END])])]):
            return tf.constant(0)

    with tf.control_dependencies([tf.cond(counts, lambda: tf.constant(0), fail)]):
        return [tensor if tensor is None else tf.identity(tensor) for tensor in tensors]


def _warn(counts, said):
    """Prints what is said, on the first replica, where the step does not count."""

    def say():
        with tf.control_dependencies([tf.print("Not finite, left out:", said)]):
            return tf.constant(0)

    tf.cond(counts | (distribution.replica_id() > 0), lambda: tf.constant(0), say)


@contextlib.contextmanager
def kept_unless(counts, variables):
    """Whatever is assigned to the variables inside is taken back where the step does not count."""
    before = [tf.identity(variable) for variable in variables]
    yield
    distribution.assign(variables, [tf.where(counts, now, old) for now, old in zip(variables, before, strict=True)])


def _values(terms):
    return tf.strings.format(": " + ", ".join(f"{name} = {{}}" for name in terms), list(terms.values()))
