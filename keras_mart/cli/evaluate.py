"""--mode=evaluate: the accuracy of the best and the last checkpoint on the test set, under attacks."""

import dataclasses
import json
import sys

import numpy as np

from keras_mart.cli import build
from keras_mart.cli.flags import FLAGS
from keras_mart.evaluation import evaluate


def evaluate_run(directory):
    """Evaluates both checkpoints, prints their tables, writes evaluation.json; returns {"best": ..., "last": ...}."""
    attacks = build.attacks(FLAGS.attacks)
    models = {which: directory.load(getattr(directory, which)) for which in ("best", "last")}
    same = all(map(np.array_equal, models["best"].network.get_weights(), models["last"].network.get_weights()))
    tables = {}
    for which, model in models.items():
        if which == "last" and same:
            print("\nThe last checkpoint is the best.")
            tables[which] = tables["best"]
            continue
        print(f"\n{directory.path}: {which} checkpoint on the test set, {build.ball()}", flush=True)
        tables[which] = evaluate(model, build.data("test"), attacks, seed=FLAGS.seed, verbose=int(sys.stdout.isatty()))
        print(tables[which])
    record = {
        "attacks": {name: repr(attack) for name, attack in attacks.items()},
        **{which: dataclasses.asdict(table) for which, table in tables.items()},
    }
    directory.evaluation.write_text(json.dumps(record, indent=2) + "\n")
    return tables
