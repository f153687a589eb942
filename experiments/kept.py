"""Keeps the weights of a run's checkpoints, and makes of what is kept the run directory that is judged.

    python -m experiments.kept --trained=<run> --kept=<results>/cifar/mart-0 --workdir=<folder> <the run's flags>

Without --trained, the weights are kept already: another machine may have trained the run.
"""

import pathlib

import keras
from absl import app
from absl import flags as absl

from experiments import train, weights  # before the package's flags, which are to know the experiments' methods
from keras_mart import files
from keras_mart.attacks.inference import network_of
from keras_mart.cli import build, flags, rules
from keras_mart.cli.workdir import RunDirectory


def main(_):
    """Does both, the first where there is --trained."""
    keras.config.set_dtype_policy(flags.FLAGS.precision)
    judged, kept = RunDirectory(flags.FLAGS.workdir), pathlib.Path(flags.FLAGS.kept)
    if flags.FLAGS.trained is not None:
        trained = RunDirectory(flags.FLAGS.trained)
        for which in weights.CHECKPOINTS:
            weights.write(network_of(trained.load(getattr(trained, which))), kept, which)
    judged.path.mkdir(parents=True, exist_ok=True)  # an evaluation that was begun elsewhere may lie in it
    judged.flags.write_text(rules.as_text(flags.FLAGS.method))
    network = build.network()
    for which in weights.CHECKPOINTS:  # when the last one is there, all is
        weights.read(network, kept, which)
        with files.atomic_file(getattr(judged, which)) as unfinished:
            network.save(unfinished)


if __name__ == "__main__":
    train.define()
    absl.DEFINE_string(
        "trained", None, "The run directory whose checkpoints are kept; without it they are kept already."
    )
    absl.DEFINE_string("kept", None, "The beginning of the paths of the files with the weights.")
    app.run(main, flags_parser=flags.parse)
