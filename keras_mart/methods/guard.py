"""Training steps that do not count: what is kept of them on the device, and what the host says when it looks."""

import contextlib
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_mart import distribution

ON_NAN = ("stop", "skip")
# So many numbers are kept: of steps left out, whether training has stopped, the step's own, then what was found.
HEAD, ROOM = 3, 32


class Guard:
    """Keeps the newest step that did not count, in a variable that is no weight, until the host looks."""

    def __init__(self):
        self._kept = keras.Variable("zeros", (ROOM,), trainable=False, aggregation="only_first_replica", name="guard")
        self._rules, self._terms = (), ()

    def judge(self, step, rules, ranges, finite, terms, stops=True):
        """Returns whether a step counts, and whether training has stopped: from then on none does.

        Args:
            step: scalar, the number of the step from 1; 0 in evaluation.
            rules: triples of a message, and the lowest and the highest value that data may have.
            ranges: [replicas, rules, 2] the lowest and the highest that they have.
            finite: boolean scalar, whether loss and gradient are.
            terms: name to scalar, what is told where they are not.
            stops: whether that stops training; data that break a rule always do.
        """
        names = tuple(terms)[: ROOM - HEAD - 2 * len(rules)]
        self._rules, self._terms = rules, names or self._terms  # an evaluation has no terms
        least, most = (tf.constant([rule[side] for rule in rules], "float32") for side in (1, 2))
        right = tf.reduce_all((ranges[..., 0] >= least) & (ranges[..., 1] <= most))
        before = self._kept[1] > 0
        stopped = before | ~right | (~finite & stops)
        numbers = [self._kept[0] + 1, stopped, step, *(terms[name] for name in names)]
        numbers = tf.stack([tf.cast(each, "float32") for each in numbers])
        found = [numbers[:HEAD], tf.reduce_min(ranges[..., 0], 0), tf.reduce_max(ranges[..., 1], 0), numbers[HEAD:]]
        found = tf.concat(found, 0)
        found = tf.pad(found, [[0, ROOM - found.shape[0]]])
        distribution.assign([self._kept], [tf.where((right & finite) | before, self._kept, found)])
        return right & finite & ~before, stopped

    def look(self):
        """Says which steps were left out since the last look.

        Raises:
            FloatingPointError: a loss or gradient that is not finite has stopped the training.
            ValueError: data that break a rule have.
        """
        times, stopped, step, *found = self._kept.numpy().tolist()
        if not times:
            return
        self.forget()
        where = f"step {step:.0f}" if step else "evaluation"
        terms = zip(self._terms, found[2 * len(self._rules) :], strict=False)
        said = f"{where}: {', '.join(f'{name} = {value:.6g}' for name, value in terms)}"
        others = f" (and {times - 1:.0f} before it)" if times > 1 else ""
        if not stopped or others:
            print(f'Not finite, left out: "{said}"{others}', file=sys.stderr)
        for (message, least, most), low, high in zip(self._rules, found, found[len(self._rules) :], strict=False):
            if not np.float32(least) <= low <= high <= np.float32(most):
                raise ValueError(message.format(where, low, high))
        if stopped:
            raise FloatingPointError(f"Loss and gradient must be finite. Received at {said}")

    def forget(self):
        """Lets steps count again, whatever has been."""
        self._kept.assign([0.0] * ROOM)


@contextlib.contextmanager
def kept_unless(counts, variables, compiled=lambda function: function):
    """Takes back what is assigned to the variables inside where a step does not count.

    Args:
        counts: boolean scalar.
        variables: Keras variables; some may come twice.
        compiled: makes one program of a function of tensors, where that pays.
    """
    variables = list({id(each): each for each in variables}.values())
    with tf.control_dependencies([counts]):  # else they are read in advance, and held throughout the step
        before = [tf.identity(each) for each in variables]
    yield

    def chosen(counts, now, before):
        return [tf.where(counts, new, old) for new, old in zip(now, before, strict=True)]

    now = [tf.convert_to_tensor(each) for each in variables]
    distribution.assign(variables, compiled(chosen)(counts, now, before))
