"""--mode=evaluate: the accuracy of the best and the last checkpoint on the test set, under attacks."""

import contextlib
import json
import sys

from keras_mart import distribution, files
from keras_mart.attacks.inference import network_of
from keras_mart.cli import build
from keras_mart.cli.flags import FLAGS
from keras_mart.evaluation import evaluate
from keras_mart.evaluation.record import weights_sha256


def evaluate_run(directory, strategy):
    """Evaluates both checkpoints, prints their tables, writes them to the run; returns {"best": ..., "last": ...}.

    Of a model that comes from elsewhere there is only "best".
    """
    attacks = build.attacks(FLAGS.attacks)
    with strategy.scope():
        models = {which: build.loaded(directory, which) for which in directory.judged}
    weights = {which: weights_sha256(network_of(model)) for which, model in models.items()}
    test, tables = build.test_data(FLAGS.examples), {}
    is_chief = distribution.is_chief(strategy)
    with _locked(directory) if is_chief else contextlib.nullcontext():
        for which, model in models.items():
            if which == "last" and weights["best"] == weights["last"]:
                print("\nThe last checkpoint is the best.")
                tables[which] = tables["best"]
                continue
            name = FLAGS.model or f"{which} checkpoint"
            print(f"\n{directory.path}: {name} on the test set, {build.ball()}", flush=True)
            tables[which] = evaluate(
                model, test, attacks, stop_early=FLAGS.stop_early, verbose=verbosity(attacks),
                state=directory.evaluating / which, class_names=build.class_names(),
                **build.evaluation_options(),
            )  # fmt: skip
            print(tables[which])
        if is_chief:
            _write(directory, tables)
    return tables


def verbosity(attacks=()):
    """A line of progress on a terminal; elsewhere nothing, unless an attack in rounds makes it long: then lines."""
    made = [getattr(attack, "attack", attack) for attack in dict(attacks).values()]  # the one that a Transfer makes
    return 1 if sys.stdout.isatty() else 2 * any(attack.spares for attack in made)


@contextlib.contextmanager
def _locked(directory):
    """Keeps a second evaluation of the same run out."""
    directory.evaluating.mkdir(parents=True, exist_ok=True)
    with files.locked(directory.evaluating / "lock"):
        yield


def _write(directory, tables):
    """Writes each example's outcome, then the summary, and removes the state, for which there is no more use."""
    directory.evaluation.unlink(missing_ok=True)  # written last: it speaks of the predictions beside it
    for which, table in tables.items():
        table.save(directory.predictions(which))
    record = {
        "dataset": FLAGS.dataset,
        "sample": None if FLAGS.examples is None else FLAGS.seed,  # which test images, where not all are taken
        "source": FLAGS.source,
        **{which: table.summary() for which, table in tables.items()},
    }
    with files.whole(directory.evaluation) as unfinished:
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
    files.remove(directory.evaluating)
