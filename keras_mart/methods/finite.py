"""What becomes of a training step whose loss or gradient is not finite: training stops and says why, or goes on.

Whether a step counts is a scalar boolean tensor, the same on all replicas.
"""

import contextlib
import re

import keras
import tensorflow as tf

from keras_mart import distribution

ON_NAN = ("stop", "skip")
# Mark the message inside TensorFlow's own.
BEGIN, END = "<not finite>", "</not finite>"


def told(error):
    """What `stop` had to say, read from the error that it became; `None` if that is another one."""
    found = re.search(f"{BEGIN}(.*?){END}", str(error), re.DOTALL)
    return found and found[1]


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
    strange = tf.where(is_class(batch.labels, found.outputs.natural), 0.0, 1.0)
    terms = {"loss": found.values, **found.terms, "share of labels that are no class": strange}
    terms = {name: tf.reduce_sum(tf.where(batch.real > 0, each, 0.0)) / examples for name, each in terms.items()}
    terms = distribution.total({**terms, "replicas whose gradient is not finite": _overflows(found.gradients)})
    overflows = terms["replicas whose gradient is not finite"]
    gradients, counts = found.gradients, tf.math.is_finite(terms["loss"])
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        # It leaves out by itself what overflows, but goes by what the first replica sees.
        gradients = [each if each is None else _spoilt(each, overflows > 0) for each in gradients]
    else:
        counts &= overflows == 0
    if model.on_nan == "stop":
        gradients = _stop(counts, model.step, terms, gradients)
    else:
        _warn(counts, model.step, terms)
    states = distribution.mean(found.states, tf.reduce_sum(batch.real) / examples)
    found = found._replace(gradients=gradients, states=states, values=tf.where(counts, found.values, 0.0))
    # Neither the metrics nor a method's memory may see a step that does not count.
    return batch._replace(real=tf.where(counts, batch.real, 0.0)), found, counts


def is_class(labels, logits):
    """[batch] whether each label is one of the classes that [batch, classes] logits tell."""
    return (labels >= 0) & (labels < logits.shape[-1])


def _overflows(gradients):
    """1 where one of this replica's gradients is not finite, 0 elsewhere."""
    finite = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients if gradient is not None]
    return 1.0 - tf.cast(tf.reduce_all(finite), "float32")


def _spoilt(gradient, overflow):
    return tf.where(overflow, tf.constant(float("nan"), gradient.dtype), gradient)


def _stop(counts, step, terms, gradients):
    """The gradients, which cannot be had where the step does not count: an error with the terms comes instead."""

    def fail():
        with tf.control_dependencies([tf.debugging.Assert(False, [BEGIN + _text(step, terms) + END])]):
            return tf.constant(0)

    with tf.control_dependencies([tf.cond(counts, lambda: tf.constant(0), fail)]):
        return [gradient if gradient is None else tf.identity(gradient) for gradient in gradients]


def _warn(counts, step, terms):
    """Prints the terms, on the first replica, where the step does not count."""

    def say():
        with tf.control_dependencies([tf.print("Not finite, left out:", _text(step, terms))]):
            return tf.constant(0)

    tf.cond(counts | (distribution.replica_id() > 0), lambda: tf.constant(0), say)


@contextlib.contextmanager
def kept_unless(counts, variables):
    """Whatever is assigned to the variables inside is taken back where the step does not count."""
    before = [tf.identity(variable) for variable in variables]
    yield
    distribution.assign(variables, [tf.where(counts, now, old) for now, old in zip(variables, before, strict=True)])


def _text(step, terms):
    values = ", ".join(f"{name} = {{}}" for name in terms)
    return tf.strings.format(f"step {{}}: {values}", [step + 1, *terms.values()])
