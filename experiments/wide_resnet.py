"""The large network: a few steps of configs/cifar_wrn.cfg, their time and memory, and what the whole recipe costs.

Paper: WRN-34-10 on CIFAR-10 (its official code: 90 epochs). Ours: the recipe as it is, for a few steps.

    python -m experiments.wide_resnet --dataset=npz:<path to cifar10.npz> --precision=mixed_bfloat16

Any other flag of the command line is taken too. Result: runs/results/wide_resnet.json. Cost: a few minutes.
"""

import json
import pathlib
import statistics
import sys

import keras
from absl import flags as absl

from benchmarks import measure, step
from keras_mart import files, folding
from keras_mart.cli import build, flags, rules

CONFIG = "configs/cifar_wrn.cfg"
STEPS = 4  # the first of which, with its tracing, does not count


def main(given):
    """Runs the steps and writes what they took."""
    results = absl.DEFINE_string("results", "runs/results", "The folder that what was measured is written to.")
    flags.parse(["wide_resnet", f"--flagfile={measure.ROOT / CONFIG}", *given])
    rules.check()
    folding.enable() if flags.FLAGS.fold else folding.disable()
    keras.config.set_dtype_policy(flags.FLAGS.precision)
    keras.utils.set_random_seed(flags.FLAGS.seed)
    model, clock = build.model(flags.FLAGS.method[0]), step.Clock()
    history = model.fit(build.training_data(model, lambda: 0).take(STEPS), callbacks=[clock], verbose=2)
    seconds = [end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False)]
    steps = build.steps()
    days = statistics.median(seconds) * steps * flags.FLAGS.epochs / 86400
    changed = {flag.name: flag.value for flag in flags.own_flags() if flag.value != flag.default}
    found = {
        "flags": changed | {"dataset": pathlib.Path(flags.FLAGS.dataset).name},  # the folder is of one machine only
        "machine": measure.machine(),
        "parameters": model.network.count_params(),
        "seconds of each step": [round(each, 1) for each in seconds],
        "peak memory in GiB": round(step.peak_memory() / 2**30, 2),
        "loss": history.history["loss"][-1],
        "steps of an epoch": steps,
        "days of the recipe's training steps, without validation": round(days, 1),
    }
    folder = pathlib.Path(results.value)
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_file(folder / "wide_resnet.json") as unfinished:
        unfinished.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
