"""--mode=evaluate: evaluates the best and the last checkpoint under attacks on the test set."""

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
    """Evaluates both checkpoints, prints their tables and writes them to the run directory.

    Returns:
        {"best": `Table`, "last": `Table`}; only "best" for --model.
    """
    attacks = build.attacks(FLAGS.attacks)
    with strategy.scope():
        models = {which: build.loaded(directory, which) for which in directory.checkpoint_names}
    weights = {which: weights_sha256(network_of(model)) for which, model in models.items()}
    test, tables = build.test_data(FLAGS.examples), {}
    is_chief = distribution.is_chief(strategy)
    with _locked(directory) if is_chief else contextlib.nullcontext():
        for which, model in models.items():
            if which == "last":
                print()
            if which == "last" and weights["best"] == weights["last"]:
                print("The last checkpoint is the best.")
                tables[which] = tables["best"]
                continue
            name = FLAGS.model or f"{which} checkpoint"
            print(f"{directory.path}: {name} on the test set, {build.ball()}", flush=True)
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
    """Returns the verbosity of `evaluate`: 1 on a terminal; otherwise 2 if attacks in rounds make it slow, else 0."""
    base_attacks = [getattr(attack, "attack", attack) for attack in dict(attacks).values()]  # without Transfer
    return 1 if sys.stdout.isatty() else 2 * any(attack.skips_misclassified for attack in base_attacks)


@contextlib.contextmanager
def _locked(directory):
    """Locks the run against a second evaluation."""
    directory.evaluating.mkdir(parents=True, exist_ok=True)
    with files.locked(directory.evaluating / "lock"):
        yield


def _write(directory, tables):
    """Writes the predictions, then the summary, and removes the saved state of the evaluation."""
    directory.evaluation.unlink(missing_ok=True)  # written last, because it describes the predictions beside it
    for which, table in tables.items():
        table.save(directory.predictions(which))
    record = {
        "dataset": FLAGS.dataset,
        # The seed that chose the test images, if not all are used.
        "sample": None if FLAGS.examples is None else FLAGS.seed,
        "source": FLAGS.source,
        **{which: table.summary() for which, table in tables.items()},
    }
    with files.atomic_file(directory.evaluation) as unfinished:
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
    files.remove(directory.evaluating)
