"""Decides which training steps count; on the device, so that the host need not wait for every step."""

import contextlib
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_mart import distribution

ON_NAN = ("stop", "skip")
# Length of the record, and of its header: the number of skipped steps, whether training has stopped, and the number of
# the last skipped step. The ranges of that step's data and the terms of its loss follow.
SIZE, HEADER = 32, 3


class Guard:
    """Keeps a record of the last skipped step, in a variable that is not a weight, until the host asks for it."""

    def __init__(self):
        self._record = keras.Variable("zeros", (SIZE,), trainable=False, aggregation="only_first_replica", name="guard")
        self._rules, self._terms = (), ()

    def record(self, step, rules, ranges, finite, terms, stops=True):
        """Records a step if its data are invalid or its loss or gradient is not finite.

        Args:
            step: scalar, the number of the step from 1; 0 in evaluation.
            rules: triples of an error message and the smallest and the largest valid value of the data.
            ranges: [replicas, rules, 2] smallest and largest values of the data.
            finite: boolean scalar, whether loss and gradient are finite.
            terms: dictionary from names to scalars, reported if they are not finite.
            stops: whether a step that is not finite stops training; invalid data always do.

        Returns:
            Two boolean scalars: whether the step counts, and whether training has stopped, after which no step counts.
        """
        names = tuple(terms)[: SIZE - HEADER - 2 * len(rules)]
        self._rules, self._terms = rules, names or self._terms  # an evaluation has no terms
        lowest, highest = (tf.constant([rule[side] for rule in rules], "float32") for side in (1, 2))
        valid = tf.reduce_all((ranges[..., 0] >= lowest) & (ranges[..., 1] <= highest))
        stopped_before = self._record[1] > 0
        stopped = stopped_before | ~valid | (~finite & stops)
        numbers = [self._record[0] + 1, stopped, step, *(terms[name] for name in names)]
        numbers = tf.stack([tf.cast(each, "float32") for each in numbers])
        extremes = [tf.reduce_min(ranges[..., 0], 0), tf.reduce_max(ranges[..., 1], 0)]
        new = tf.concat([numbers[:HEADER], *extremes, numbers[HEADER:]], 0)
        new = tf.pad(new, [[0, SIZE - new.shape[0]]])
        distribution.assign([self._record], [tf.where((valid & finite) | stopped_before, self._record, new)])
        return valid & finite & ~stopped_before, stopped

    def report(self):
        """Prints which steps were skipped since the last report.

        Raises:
            FloatingPointError: a loss or gradient that is not finite has stopped training.
            ValueError: invalid data have stopped training.
        """
        times, stopped, step, *numbers = self._record.numpy().tolist()
        if not times:
            return
        self.reset()
        where = f"step {step:.0f}" if step else "evaluation"
        terms = zip(self._terms, numbers[2 * len(self._rules) :], strict=False)
        text = f"{where}: {', '.join(f'{name} = {value:.6g}' for name, value in terms)}"
        others = f" (and {times - 1:.0f} before it)" if times > 1 else ""
        if not stopped or others:
            print(f'Not finite, skipped: "{text}"{others}', file=sys.stderr)
        highs = numbers[len(self._rules) :]
        for (message, lowest, highest), low, high in zip(self._rules, numbers, highs, strict=False):
            if not np.float32(lowest) <= low <= high <= np.float32(highest):
                raise ValueError(message.format(where, low, high))
        if stopped:
            raise FloatingPointError(f"Loss and gradient must be finite. Received at {text}")

    def reset(self):
        """Clears the record, so that steps count again."""
        self._record.assign([0.0] * SIZE)


@contextlib.contextmanager
def revert_unless(counts, variables, compiled=lambda function: function):
    """Context that reverts all assignments to the variables made inside it, unless the step counts.

    Args:
        counts: boolean scalar, whether the step counts.
        variables: Keras variables; duplicates are allowed.
        compiled: compiles a function of tensors into one program, where that pays.
    """
    variables = list({id(each): each for each in variables}.values())
    # Without the dependency, the values are read early, and take memory during the whole step.
    with tf.control_dependencies([counts]):
        before = [tf.convert_to_tensor(each) for each in variables]
    yield

    def chosen(counts, after, before):
        return [tf.where(counts, new, old) for new, old in zip(after, before, strict=True)]

    after = [tf.convert_to_tensor(each) for each in variables]
    distribution.assign(variables, compiled(chosen)(counts, after, before))
