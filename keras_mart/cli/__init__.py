"""The command line: parses the flags, then trains, evaluates, reports and exports."""

import os
import signal
import sys

import keras
import tensorflow as tf
from absl import app, logging

from keras_mart import datasets, distribution, folding, launching, startup, watch
from keras_mart.cli import build, flags, help, parsers, rules, workdir
from keras_mart.cli.evaluate import evaluate_run
from keras_mart.cli.export import export_run
from keras_mart.cli.flags import FLAGS
from keras_mart.cli.report import check_runs, write_report
from keras_mart.cli.stopping import STATUS, Stopped, say
from keras_mart.cli.train import train
from keras_mart.evaluation.comparison import conclusion, side_by_side

# Exit statuses; after SIGTERM and Ctrl-C they are 143 and 130, as in shells.
WRONG_USE, NOT_FINITE = 2, 3
WORKER_LOST = watch.WORKER_LOST  # another worker failed, died or hangs
BALL = ("threat", "epsilon")


def run():
    """Runs the command line: the entry point of `keras-mart` and `python -m keras_mart.main`."""
    # TensorFlow's messages matter only if the machine has a GPU that it cannot use.
    startup.release(show=not tf.config.list_physical_devices("GPU") and os.path.exists("/dev/nvidia0"))
    if help.requested(sys.argv[1:]):
        print(help.text())
        return
    app.run(main, flags_parser=flags.parse)


def main(argv):
    """Runs the modes of --mode; a user's error ends the program with a message and exit status 2."""
    if FLAGS.verbosity <= 0:
        logging.set_verbosity(logging.WARNING)
        tf.get_logger().setLevel("WARNING")
    try:
        _main(argv)
    except (KeyboardInterrupt, Stopped) as error:
        watch.leave()
        how = " Resume it with the same flags and --resume." if "train" in FLAGS.mode else ""
        how = how or (" The same command resumes the evaluation." if "evaluate" in FLAGS.mode else "")
        say(f"\nkeras_mart: interrupted.{how}")
        sys.exit(STATUS[getattr(error, "number", signal.SIGINT)])
    except FloatingPointError as error:
        watch.leave(error)
        print(f"keras_mart: {error}. --resume continues from the last saved state.", file=sys.stderr)
        sys.exit(NOT_FINITE)
    except tf.errors.OpError as error:
        refused = datasets.refusal(error)  # such as a damaged image file, found when it is decoded
        if refused is None:
            watch.exit_if_worker_lost(error)
            raise
        _refuse(refused)
    except watch.WorkerLost as error:
        print(f"keras_mart: {error}", file=sys.stderr)
        sys.exit(WORKER_LOST)
    except (ValueError, OSError) as error:
        _refuse(error)


def _refuse(error):
    """Ends the program with the message of a user's error."""
    watch.leave(error)
    if FLAGS.verbosity > 0:
        raise error
    print(f"keras_mart: {error}", file=sys.stderr)
    sys.exit(WRONG_USE)


def _main(argv):
    if len(argv) > 1:
        raise ValueError(f"Arguments must be flags, --name=value. Received: {' '.join(argv[1:])}")
    if "train" in FLAGS.mode:
        rules.check()
    elif FLAGS.model is None:
        _load_flags(workdir.RunDirectory(workdir.root_path()))
    if FLAGS.model is not None:
        rules.check_model()
        FLAGS.model = parsers.absolute(FLAGS.model)  # flags.cfg stores it
    if FLAGS.workers > 1:
        rules.check_workers()
        sys.exit(launching.launch(_worker_command(sys.argv), FLAGS.workers))
    strategy = distribution.strategy(FLAGS.strategy)  # before TensorFlow initialises the devices
    if FLAGS.strategy == "auto" and strategy.num_replicas_in_sync > 1:
        print(f"--strategy=auto: {distribution.describe(strategy)}", flush=True)
    keras.config.set_dtype_policy(FLAGS.precision)
    folding.enable() if FLAGS.fold else folding.disable()
    is_chief = distribution.is_chief(strategy)
    if not is_chief:
        sys.stdout = open(os.devnull, "w")  # only the first worker prints
    if FLAGS.model is None:
        directories = {method: workdir.of_method(method) for method in FLAGS.method}
    else:
        directories = {FLAGS.model: workdir.ModelDirectory(workdir.root_path())}
        with strategy.scope():
            build.loaded(directories[FLAGS.model], "best")  # fails before the directory is created
        build.attacks(FLAGS.attacks)
        directories[FLAGS.model].begin(rules.as_text([]))
    steps = _Steps(len(FLAGS.mode) * len(directories))
    if "train" in FLAGS.mode:
        if is_chief:
            _begin(directories)
        _check_workers_agree(directories, strategy)  # the other workers wait here
        for method, directory in steps(directories.items()):
            train(method, directory, strategy)
    tables = {}
    if "evaluate" in FLAGS.mode:
        for method, directory in steps(directories.items()):
            tables[method] = evaluate_run(directory, strategy)["best"]
    if "report" in FLAGS.mode and is_chief:
        check_runs(steps(directories.values()))
    if "export" in FLAGS.mode and is_chief:
        for directory in steps(directories.values()):
            export_run(directory)
    if tables:
        print(f"\nBest checkpoints on the test set, {build.ball()}\n{side_by_side(tables)}\n\n{conclusion(tables)}")
    if "report" in FLAGS.mode and is_chief:
        print(f"\nReport: {write_report(directories.values(), workdir.root_path())}")
    distribution.all_gather("done", strategy)


class _Steps:
    """Numbers the steps of a command: if there are several, the heading of each begins with [number/total]."""

    def __init__(self, total):
        self.total, self.begun = total, 0

    def __call__(self, items):
        """Yields the items, and begins a heading before each."""
        for item in items:
            self.begun += 1
            if self.total > 1:
                print(f"\n[{self.begun}/{self.total}]", end=" ", flush=True)
            yield item


def _check_workers_agree(directories, strategy):
    """Raises ValueError if the workers' flags differ, or a worker does not see the first one's run directory."""
    flags_given = distribution.all_gather(rules.as_text(FLAGS.method), strategy)
    if len(set(flags_given)) > 1:
        raise ValueError(f"All workers must be given the same flags. Received: {flags_given}")
    seen = distribution.all_gather(all(each.flags.exists() for each in directories.values()), strategy)
    if not all(seen):
        path, blind = workdir.root_path(), [worker for worker, sees in enumerate(seen) if not sees]
        raise ValueError(f"All workers must share one run directory. Received: {path}, not seen by workers {blind}")


def _worker_command(argv):
    """Returns the command of one worker: the same with --workers=1, because a flagfile may set --workers too."""
    return [sys.executable, "-m", "keras_mart.main", *argv[1:], "--workers=1"]


def _begin(directories):
    """Creates the run directories, after all checks have passed."""
    texts = {directory: rules.as_text([method]) for method, directory in directories.items()}
    if len(directories) > 1:
        texts = {workdir.RunDirectory(workdir.root_path()): rules.as_text(FLAGS.method), **texts}
    for directory, text in texts.items():
        directory.check(FLAGS.resume, text)
    build.check(directories)
    for directory, text in texts.items():
        directory.begin(text)


def _load_flags(directory):
    """Loads the flags that a run was trained with; those on the command line take precedence."""
    if not directory.flags.exists():
        raise ValueError(f"There is no run in {directory.path} (flags.cfg is missing). --workdir names the run.")
    command = [sys.argv[0], f"--flagfile={directory.flags}"]
    given = sys.argv[1:]
    FLAGS.unparse_flags()
    flags.parse(command)
    trained = {flag.name: flag.value for flag in flags.own_flags()}
    FLAGS.unparse_flags()
    flags.parse([*command, *given])
    stored = trained["evaluation_epsilon"]
    if FLAGS.evaluation_epsilon == stored is not None and any(FLAGS[each].value != trained[each] for each in BALL):
        given = " ".join(f"--{each}={FLAGS[each].value}" for each in BALL)
        raise ValueError(
            f"The run has its own --evaluation_epsilon, {stored:.6g}: to evaluate in another ball, set it too. "
            f"Received: only {given}"
        )
    if not set(FLAGS.method) <= set(trained["method"]):
        methods = ", ".join(trained["method"])
        raise ValueError(f"The run in {directory.path} trained {methods}. Received: --method={','.join(FLAGS.method)}")
    ignored = [
        name for name in trained if name not in rules.CHANGEABLE_WITHOUT_TRAINING and FLAGS[name].value != trained[name]
    ]
    if ignored:
        print(f"Note: without training these flags have no effect: {', '.join(f'--{name}' for name in ignored)}")
