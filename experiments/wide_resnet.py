"""The large network: time and memory of a few steps of configs/cifar_wrn.cfg, and the cost of the whole recipe.

Paper: WRN-34-10 on CIFAR-10 (its official code: 90 epochs). Ours: the unchanged recipe, for a few steps.

    python -m experiments.wide_resnet --dataset=npz:<path to cifar10.npz> --precision=mixed_bfloat16

Accepts all other flags of the command line. Result: runs/results/wide_resnet.json. Cost: a few minutes.
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
STEPS = 4  # the first includes tracing and is not timed


def main(arguments):
    """Runs the steps and writes the measurements."""
    results = absl.DEFINE_string("results", "runs/results", "Folder of the results.")
    flags.parse(["wide_resnet", f"--flagfile={measure.ROOT / CONFIG}", *arguments])
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
        "flags": changed
        | {"dataset": pathlib.Path(flags.FLAGS.dataset).name},  # without the folder, which differs by machine
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
