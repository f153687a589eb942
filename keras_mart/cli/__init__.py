"""The command line: flags, then train, evaluate and export, each in its file."""

import os
import sys

import keras
import tensorflow as tf
from absl import app, logging

from keras_mart import distribution
from keras_mart.cli import build, flags, workdir
from keras_mart.cli.evaluate import evaluate_run
from keras_mart.cli.export import export_run
from keras_mart.cli.flags import FLAGS
from keras_mart.cli.train import train
from keras_mart.evaluation.table import side_by_side


def run():
    """The entry point: parses the flags and does what --mode says."""
    if {"--help", "-h", "--helpshort"} & set(sys.argv[1:]):
        print(flags.help_text())
        return
    app.run(main)


def main(argv):
    """Runs the chosen methods; what a user got wrong ends it with a message and exit status 2."""
    if FLAGS.verbosity <= 0:  # --verbosity=1 says more
        logging.set_verbosity(logging.WARNING)
        tf.get_logger().setLevel("WARNING")
    try:
        _main(argv)
    except ValueError as error:
        if FLAGS.verbosity > 0:
            raise
        print(f"keras_mart: {error}", file=sys.stderr)
        sys.exit(2)


def _main(argv):
    if len(argv) > 1:
        raise ValueError(f"Everything is said by flags. Received: {' '.join(argv[1:])}")
    if "train" not in FLAGS.mode:
        _recall(workdir.RunDirectory(workdir.root_path()))
    flags.check()
    strategy = distribution.strategy(FLAGS.strategy)  # before any other work of TensorFlow's
    keras.config.set_dtype_policy(FLAGS.precision)
    directories = {method: workdir.of_method(method) for method in FLAGS.method}
    if "train" in FLAGS.mode:
        _begin(directories)
        for method, directory in directories.items():
            print(f"\nTraining {method} in {directory.path} on {strategy.num_replicas_in_sync} device(s)")
            train(method, directory, strategy)
    if "evaluate" in FLAGS.mode:
        tables = {method: evaluate_run(directory)["best"] for method, directory in directories.items()}
        if len(tables) > 1:
            print(f"\nBest checkpoints on the test set\n{side_by_side(tables)}")
    if "export" in FLAGS.mode:
        for directory in directories.values():
            export_run(directory)


def _begin(directories):
    """Begins the run directories, after everything that can be wrong with the flags was tried."""
    build.training_attack()
    build.attacks(FLAGS.attacks)
    build.data("test")
    if len(directories) > 1:
        workdir.RunDirectory(workdir.root_path()).begin(FLAGS.resume, flags.as_text())
    for method, directory in directories.items():
        directory.begin(FLAGS.resume, flags.as_text(method=method))


def _recall(directory):
    """Takes the flags that a run was trained with, the command line's going first."""
    if not directory.flags.exists():
        raise ValueError(f"There is no run in {directory.path} (flags.cfg is missing). Say which by --workdir.")
    given = sys.argv[1:]
    FLAGS.unparse_flags()
    FLAGS([sys.argv[0], f"--flagfile={os.fspath(directory.flags)}", *given])
