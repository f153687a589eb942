"""The CIFAR-10 table: the paper's main table (natural, FGSM, PGD-20, CW and AutoAttack) with the official recipe.

Paper: MART has the highest accuracy under FGSM, PGD-20 and CW with ResNet-18 (its white-box table).
Ours: the official code's recipe (configs/cifar.cfg: ResNet-18, 120 epochs, a learning rate of 0.01 that drops at epochs
75, 90 and 100) for Standard, AT, TRADES (beta 6, its own KL attack) and MART (beta 5), and, as a recipe with much
robustness for its cost, AT for 30 epochs with a one-cycle learning rate (configs/cifar_at_onecycle.cfg:
PreActResNet-18). All use mixed bfloat16 and one seed; MMA is left out. Of the 50,000 training images 5,000 are held out
for validation every third epoch, which chooses the best checkpoint; the official code evaluates each epoch on the test
set. The evaluation uses all 10,000 test images in float32, with the weights rounded to float16, as they are saved. 73
of the training and 20 of the test images used here are JPEG copies; the latter change an accuracy by at most 0.2
points.

    python -m experiments.cifar --dataset=npz:<path to cifar10.npz>

Result: runs/results/cifar.json, and both checkpoints' weights in runs/results/cifar/. Cost: docs/reproduction.md.

On a machine that is available only for short sessions, repeat the command with --seconds=540 (for sessions of ten
minutes), and with --only=mart for one method at a time. Only the results folder has to be copied from it: 45 MB a run,
no file above 16 MiB. A training must finish on the machine that started it, since its state is large. The saved weights
can be evaluated on any machine that has the results folder and the dataset at the same path. An interrupted evaluation
resumes there if runs/cifar/<run>-float16/evaluating is copied too, and restarts otherwise. `python -m experiments.merge
<folder>` adds copied results to the repository's.
"""

from benchmarks import measure
from experiments import data, study
from experiments.options import parse

EPOCHS = 120  # the official recipe's
METHODS = ("standard", "at", "trades", "mart")
CHEAP = "onecycle"
CONFIGS = ("configs/cifar.cfg", "configs/cifar_at_onecycle.cfg")  # for METHODS, for CHEAP
ALL_IMAGES = {"evaluation_batch_size": 500}
EVALUATIONS = {
    "paper": {"attacks": "paper", **ALL_IMAGES},
    "autoattack": {"attacks": "pgd20,autoattack", **ALL_IMAGES},  # PGD-20 again, to compare image by image
}


def recipe(config, dataset, epochs):
    """Returns the flags of a config, shortened in the proportion of `epochs` to the official recipe's."""
    lines = (measure.ROOT / config).read_text().splitlines()
    flags = dict(line.removeprefix("--").split("=", 1) for line in lines if line.startswith("--"))
    del flags["examples"]  # all test images are evaluated
    length, share = int(flags["epochs"]), epochs / EPOCHS
    flags |= {"dataset": dataset, "precision": "mixed_bfloat16", "validate_every": 3}
    flags["epochs"] = max(1, round(length * share))
    if "decay_epochs" in flags:
        falls = (max(1, round(int(each) * share)) for each in flags["decay_epochs"].split(","))
        flags["decay_epochs"] = ",".join(map(str, falls))
    if "warmup_epochs" in flags:
        flags["warmup_epochs"] = f"{int(flags['warmup_epochs']) * flags['epochs'] / length:g}"
    return flags


def runs(dataset, epochs=EPOCHS, changes=()):
    """Yields the runs, MART first since time may run out; `changes`: (flag, value) pairs that override the recipe."""
    flags, cheap = (recipe(config, dataset, epochs) for config in CONFIGS)
    made = {method: flags | {"method": method} for method in reversed(METHODS)} | {CHEAP: cheap}
    for name, flags in made.items():
        yield study.Run(f"{name}-0", {**flags, "seed": 0, **dict(changes)}, EVALUATIONS, weights=True)


if __name__ == "__main__":
    scale = {"train_examples": 0, "epochs": EPOCHS, "dataset": "tfds:cifar10"}
    table, options = parse("cifar", __doc__, **scale, changes=True)
    dataset = data.subset(options.dataset, options.train_examples, options.root)
    table.run(list(runs(dataset, options.epochs, options.change)))
