"""Saves the weights of a run's checkpoints in float16, and makes a run directory with these rounded weights.

    python -m experiments.float16_run --trained=<run> --kept=<results>/cifar/mart-0 --workdir=<folder> <the run's flags>

Without --trained, the saved weights must exist: another machine may have trained the run.
"""

import pathlib

import keras
from absl import app
from absl import flags as absl

from experiments import train, weights  # before the package's flags, so that they include the experiments' methods
from keras_mart import files
from keras_mart.attacks.inference import network_of
from keras_mart.cli import build, flags, rules
from keras_mart.cli.workdir import RunDirectory


def main(_):
    """Saves the weights if --trained is given, then makes the run directory from the saved weights."""
    keras.config.set_dtype_policy(flags.FLAGS.precision)
    rounded, prefix = RunDirectory(flags.FLAGS.workdir), pathlib.Path(flags.FLAGS.kept)
    if flags.FLAGS.trained is not None:
        trained = RunDirectory(flags.FLAGS.trained)
        for which in weights.CHECKPOINTS:
            weights.write(network_of(trained.load(getattr(trained, which))), prefix, which)
    rounded.path.mkdir(parents=True, exist_ok=True)  # may exist with an evaluation that was started elsewhere
    rounded.flags.write_text(rules.as_text(flags.FLAGS.method))
    network = build.network()
    for which in weights.CHECKPOINTS:  # ends with "last", whose file marks a complete directory
        weights.read(network, prefix, which)
        with files.atomic_file(getattr(rounded, which)) as unfinished:
            network.save(unfinished)


if __name__ == "__main__":
    train.define()
    absl.DEFINE_string(
        "trained", None, "Run directory whose checkpoints' weights are saved; without it they must be saved already."
    )
    absl.DEFINE_string("kept", None, "Prefix of the paths of the weights' files.")
    app.run(main, flags_parser=flags.parse)
