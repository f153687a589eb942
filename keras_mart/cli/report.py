"""--mode=report: checks the best checkpoint for false robustness, saves some images, and writes report.html."""

import numpy as np

from keras_mart import files
from keras_mart.attacks.inference import network_of
from keras_mart.cli import build
from keras_mart.cli.evaluate import verbosity
from keras_mart.cli.flags import FLAGS
from keras_mart.evaluation import diagnose, report
from keras_mart.evaluation.precision import with_precision

# The number of examples in the gallery that the attack breaks, and of those that it does not.
IMAGES = 4


def check_runs(directories):
    """Writes the checks for false robustness and the examples of the gallery to each run directory, for the report."""
    images, labels = build.test_data(FLAGS.checked_examples)
    first = slice(build.evaluation_batch_size())
    for directory in directories:
        network = network_of(build.loaded(directory, "best"))
        model = with_precision(network, build.evaluation_options()["precision"])
        _check(directory, model, images, labels)
        _save_gallery(directory, model, images[first], labels[first])


def write_report(directories, root):
    """Writes report.html of all runs to the root or, if there is only one run, to its directory; returns its path."""
    paths = [directory.path for directory in directories]
    return report(paths, (root if len(paths) > 1 else paths[0]) / "report.html")


def _check(directory, model, images, labels):
    threat = build.evaluation_threat()
    directory.diagnosis.unlink(missing_ok=True)
    if threat.epsilon == 0:
        print(f"{directory.path}: no checks for false robustness at epsilon 0.")
        return
    print(f"{directory.path}: checks for false robustness, {len(labels)} test images", flush=True)
    found = diagnose(
        model, (images, labels), threat, build.source(), limit=len(labels), verbose=verbosity(),
        **build.evaluation_options(),
    )  # fmt: skip
    print(found)
    with files.atomic_file(directory.diagnosis) as unfinished:
        unfinished.write_text(found.to_json() + "\n")


def _save_gallery(directory, model, images, labels):
    attack = build.attacks(["pgd20"])["pgd20"]
    adversarial = np.asarray(attack(model, images, labels, seed=FLAGS.seed))
    natural, predicted = (np.argmax(model.predict(each, verbose=0), axis=1) for each in (images, adversarial))
    broken, robust = np.flatnonzero((natural == labels) & (predicted != labels)), np.flatnonzero(predicted == labels)
    chosen = np.concatenate([broken[:IMAGES], robust[:IMAGES]])
    with files.atomic_file(directory.gallery) as unfinished:
        np.savez_compressed(
            unfinished, images=images[chosen], adversarial=adversarial[chosen], labels=labels[chosen],
            natural=natural[chosen], predicted=predicted[chosen], attack=repr(attack), epsilon=attack.threat.epsilon,
        )  # fmt: skip
