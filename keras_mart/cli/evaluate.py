"""--mode=evaluate: the accuracy of the best and the last checkpoint on the test set, under attacks."""

import json
import platform
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_mart
from keras_mart import distribution, files
from keras_mart.attacks import AutoAttack
from keras_mart.attacks.base import Rounds
from keras_mart.cli import build
from keras_mart.cli.flags import FLAGS
from keras_mart.evaluation import evaluate


def evaluate_run(directory, strategy):
    """Evaluates both checkpoints, prints their tables, writes them to the run; returns {"best": ..., "last": ...}."""
    attacks = build.attacks(FLAGS.attacks)
    with strategy.scope():
        models = {which: build.loaded(directory, which) for which in ("best", "last")}
    weights = (models[which].judged_network.get_weights() for which in ("best", "last"))
    same = all(map(np.array_equal, *weights))
    test, tables = build.test_data(FLAGS.examples), {}
    for which, model in models.items():
        if which == "last" and same:
            print("\nThe last checkpoint is the best.")
            tables[which] = tables["best"]
        else:
            print(f"\n{directory.path}: {which} checkpoint on the test set, {build.ball()}", flush=True)
            tables[which] = evaluate(
                model, test, attacks, batch_size=build.evaluation_batch_size(),
                stop_early=FLAGS.stop_early, seed=FLAGS.seed, verbose=verbosity(attacks),
            )  # fmt: skip
            print(tables[which])
    if distribution.is_chief(strategy):
        directory.evaluation.unlink(missing_ok=True)  # written last: it speaks of the predictions beside it
        for which, table in tables.items():
            table.save(directory.predictions(which))
        _record(directory, attacks, tables)
    return tables


def verbosity(attacks=()):
    """A progress bar on a terminal; elsewhere nothing, unless an attack in rounds makes it long: then lines."""
    made = [getattr(attack, "attack", attack) for attack in dict(attacks).values()]  # the one that a Transfer makes
    long = any(isinstance(attack, (AutoAttack, Rounds)) for attack in made)
    return 1 if sys.stdout.isatty() else 2 * long


def _record(directory, attacks, tables):
    threat = build.evaluation_threat()
    record = {
        "threat": {"norm": type(threat).__name__, "epsilon": threat.epsilon},
        "attacks": {name: repr(attack) for name, attack in attacks.items()},
        "dataset": FLAGS.dataset,
        "sample": None if FLAGS.examples is None else FLAGS.seed,  # which test images, where not all are taken
        "seed": FLAGS.seed,
        "source": FLAGS.source,
        "versions": {
            "python": platform.python_version(), "keras_mart": keras_mart.__version__, "keras": keras.__version__,
            "tensorflow": tf.__version__, "numpy": np.__version__,
        },
        **{which: table.summary() for which, table in tables.items()},
    }  # fmt: skip
    with files.whole(directory.evaluation) as unfinished:
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
