"""Keeps the weights of a run's checkpoints, and makes of what is kept the run directory that is judged.

    python -m experiments.kept --trained=<run> --kept=<results>/cifar/mart-0 --workdir=<folder> <the run's flags>

Where the run is gone, since another machine trained it, the files that came from there are enough.
"""

import keras
from absl import app
from absl import flags as absl

from experiments import train, weights  # before the package's flags, which are to know the experiments' methods
from keras_mart import files
from keras_mart.attacks.inference import network_of
from keras_mart.cli import build, flags, rules
from keras_mart.cli.workdir import RunDirectory


def main(_):
    """Does both, the first where the run is there."""
    keras.config.set_dtype_policy(flags.FLAGS.precision)
    trained, judged, kept = (RunDirectory(flags.FLAGS[name].value) for name in ("trained", "workdir", "kept"))
    if trained.last.exists():
        for which in weights.CHECKPOINTS:
            weights.write(network_of(trained.load(getattr(trained, which))), kept.path, which)
    files.remove(judged.path)
    judged.path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_folder(judged.path) as folder:
        made, network = RunDirectory(folder), build.network()
        for which in weights.CHECKPOINTS:
            weights.read(network, kept.path, which)
            network.save(getattr(made, which))
        made.flags.write_text(rules.as_text(flags.FLAGS.method))


if __name__ == "__main__":
    train.define()
    absl.DEFINE_string("trained", None, "The run directory whose checkpoints are kept, where it is there.")
    absl.DEFINE_string("kept", None, "The beginning of the paths of the files with the weights.")
    app.run(main, flags_parser=flags.parse)
