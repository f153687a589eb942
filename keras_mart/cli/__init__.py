"""The command line: flags, then train, evaluate, report and export, each in its file."""

import os
import signal
import sys

import keras
import tensorflow as tf
from absl import app, logging

from keras_mart import datasets, distribution, folding, launching, watch
from keras_mart.cli import build, flags, help, parsers, rules, workdir
from keras_mart.cli.evaluate import evaluate_run
from keras_mart.cli.export import export_run
from keras_mart.cli.flags import FLAGS
from keras_mart.cli.report import report_runs
from keras_mart.cli.stopping import STATUS, Stopped, say
from keras_mart.cli.train import train
from keras_mart.evaluation.table import side_by_side

# Exit statuses; SIGTERM and Ctrl-C have 143 and 130, as shells have it.
WRONG_USE, NOT_FINITE = 2, 3
WORKER_LOST = watch.WORKER_LOST  # where another worker failed, died or hangs
BALL = ("threat", "epsilon")


def run():
    """The entry point: parses the flags and does what --mode says."""
    if help.requested(sys.argv[1:]):
        print(help.text())
        return
    app.run(main, flags_parser=flags.parse)


def main(argv):
    """Runs the chosen methods; what a user got wrong ends it with a message and exit status 2."""
    if FLAGS.verbosity <= 0:  # --verbosity=1 says more
        logging.set_verbosity(logging.WARNING)
        tf.get_logger().setLevel("WARNING")
    try:
        _main(argv)
    except (KeyboardInterrupt, Stopped) as error:
        watch.leave()
        how = " Go on by giving the same flags and --resume." if "train" in FLAGS.mode else ""
        how = how or (" The same command goes on with the evaluation." if "evaluate" in FLAGS.mode else "")
        say(f"\nkeras_mart: interrupted.{how}")
        sys.exit(STATUS[getattr(error, "number", signal.SIGINT)])
    except FloatingPointError as error:
        watch.leave(error)
        print(f"keras_mart: {error}. Go on from the last state that was saved by --resume.", file=sys.stderr)
        sys.exit(NOT_FINITE)
    except tf.errors.OpError as error:
        refused = datasets.refusal(error)  # such as a damaged file, which shows when it is decoded
        if refused is None:
            watch.explain(error)
            raise
        _refuse(refused)
    except watch.WorkerLost as error:
        print(f"keras_mart: {error}", file=sys.stderr)
        sys.exit(WORKER_LOST)
    except (ValueError, OSError) as error:
        _refuse(error)


def _refuse(error):
    """Ends the program because of what a user got wrong."""
    watch.leave(error)
    if FLAGS.verbosity > 0:
        raise error
    print(f"keras_mart: {error}", file=sys.stderr)
    sys.exit(WRONG_USE)


def _main(argv):
    if len(argv) > 1:
        raise ValueError(f"Everything is said by flags, --name=value. Received: {' '.join(argv[1:])}")
    if "train" in FLAGS.mode:
        rules.check()
    elif FLAGS.model is None:
        _load_flags(workdir.RunDirectory(workdir.root_path()))
    if FLAGS.model is not None:
        rules.check_model()
        FLAGS.model = parsers.absolute(FLAGS.model)  # the directory keeps it
    if FLAGS.workers > 1:
        rules.check_workers()
        sys.exit(launching.launch(_worker_command(sys.argv), FLAGS.workers))
    strategy = distribution.strategy(FLAGS.strategy)  # before any other work of TensorFlow's
    if FLAGS.strategy == "auto" and strategy.num_replicas_in_sync > 1:
        print(f"--strategy=auto: {distribution.describe(strategy)}", flush=True)
    keras.config.set_dtype_policy(FLAGS.precision)
    folding.enable() if FLAGS.fold else folding.disable()
    is_chief = distribution.is_chief(strategy)
    if not is_chief:
        sys.stdout = open(os.devnull, "w")  # the first worker speaks for all of them
    if FLAGS.model is None:
        directories = {method: workdir.of_method(method) for method in FLAGS.method}
    else:
        directories = {FLAGS.model: workdir.ModelDirectory(workdir.root_path())}
        with strategy.scope():
            build.loaded(directories[FLAGS.model], "best")  # what is wrong is said before the directory is made
        build.attacks(FLAGS.attacks)
        directories[FLAGS.model].begin(rules.as_text([]))
    if "train" in FLAGS.mode:
        if is_chief:
            _begin(directories)
        _check_workers_agree(directories, strategy)  # the others wait here
        for method, directory in directories.items():
            train(method, directory, strategy)
    if "evaluate" in FLAGS.mode:
        tables = {method: evaluate_run(directory, strategy)["best"] for method, directory in directories.items()}
        if len(tables) > 1:
            print(f"\nBest checkpoints on the test set, {build.ball()}\n{side_by_side(tables)}")
    if "report" in FLAGS.mode and is_chief:
        report_runs(directories.values(), workdir.root_path())
    if "export" in FLAGS.mode and is_chief:
        for directory in directories.values():
            export_run(directory)
    distribution.gathered("done", strategy)


def _check_workers_agree(directories, strategy):
    """Raises ValueError where workers were given other flags, or see another run directory than the first."""
    flags_given = distribution.gathered(rules.as_text(FLAGS.method), strategy)
    if len(set(flags_given)) > 1:
        raise ValueError(f"All workers must be given the same flags. Received: {flags_given}")
    seen = distribution.gathered(all(each.flags.exists() for each in directories.values()), strategy)
    if not all(seen):
        path, blind = workdir.root_path(), [worker for worker, sees in enumerate(seen) if not sees]
        raise ValueError(f"All workers must see one run directory. Received: {path}, not seen by workers {blind}")


def _worker_command(argv):
    """The command of one of the workers: the same without --workers, which a flagfile may hold too."""
    return [sys.executable, "-m", "keras_mart.main", *argv[1:], "--workers=1"]


def _begin(directories):
    """Begins the run directories, after everything that can be wrong was tried."""
    texts = {directory: rules.as_text([method]) for method, directory in directories.items()}
    if len(directories) > 1:
        texts = {workdir.RunDirectory(workdir.root_path()): rules.as_text(FLAGS.method), **texts}
    for directory, text in texts.items():
        directory.check(FLAGS.resume, text)
    build.check(directories)
    for directory, text in texts.items():
        directory.begin(text)


def _load_flags(directory):
    """Takes the flags that a run was trained with, the command line's going first."""
    if not directory.flags.exists():
        raise ValueError(f"There is no run in {directory.path} (flags.cfg is missing). Say which by --workdir.")
    command = [sys.argv[0], f"--flagfile={directory.flags}"]
    given = sys.argv[1:]
    FLAGS.unparse_flags()
    flags.parse(command)
    trained = {flag.name: flag.value for flag in flags.own_flags()}
    FLAGS.unparse_flags()
    flags.parse([*command, *given])
    kept = trained["evaluation_epsilon"]
    if FLAGS.evaluation_epsilon == kept is not None and any(FLAGS[each].value != trained[each] for each in BALL):
        given = " ".join(f"--{each}={FLAGS[each].value}" for each in BALL)
        raise ValueError(
            f"The run is judged at its own --evaluation_epsilon, {kept:.6g}: another ball needs another one. "
            f"Received: {given} alone"
        )
    if not set(FLAGS.method) <= set(trained["method"]):
        methods = ", ".join(trained["method"])
        raise ValueError(f"The run in {directory.path} trained {methods}. Received: --method={','.join(FLAGS.method)}")
    idle = [
        name for name in trained if name not in rules.CHANGEABLE_WITHOUT_TRAINING and FLAGS[name].value != trained[name]
    ]
    if idle:
        print(f"Note: without training these flags have no effect: {', '.join(f'--{name}' for name in idle)}")
