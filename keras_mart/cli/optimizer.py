"""Builds the optimizer and the learning rate schedule that the flags describe."""

import keras

from keras_mart import optimizers
from keras_mart.cli.flags import FLAGS

DECAY = 0.1  # the factor of the rate at each of --decay_epochs


def optimizer(steps):
    """Returns the optimizer of a run with `steps` steps per epoch."""
    options = {"learning_rate": schedule(steps), "global_clipnorm": FLAGS.clip_norm}
    if FLAGS.optimizer == "adam":
        return keras.optimizers.Adam(**options)
    options["weight_decay"] = FLAGS.weight_decay
    if FLAGS.optimizer == "sgd":
        return optimizers.SGD(momentum=FLAGS.momentum, nesterov=FLAGS.nesterov, **options)
    return {"adamw": keras.optimizers.AdamW, "lion": keras.optimizers.Lion}[FLAGS.optimizer](**options)


def schedule(steps):
    """Returns the learning rate schedule of a run with `steps` steps per epoch."""
    warm_up = round(FLAGS.warmup_epochs * steps)
    falling = max(FLAGS.epochs * steps - warm_up, 1)
    if FLAGS.schedule == "cosine":
        after = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, falling)
    elif FLAGS.schedule == "onecycle":
        after = keras.optimizers.schedules.PolynomialDecay(FLAGS.learning_rate, falling, end_learning_rate=0.0)
    elif FLAGS.schedule == "steps" and FLAGS.decay_epochs:
        # In Keras, a value applies up to and including the step of its boundary; --decay_epochs counts from 1.
        boundaries = [(epoch - 1) * steps - warm_up - 1 for epoch in sorted(FLAGS.decay_epochs)]
        values = [FLAGS.learning_rate * DECAY**number for number in range(len(boundaries) + 1)]
        after = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    else:
        after = FLAGS.learning_rate
    return optimizers.Warmup(after, warm_up)
