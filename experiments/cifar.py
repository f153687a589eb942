"""The CIFAR-10 table: the paper's main table, natural, FGSM, PGD-20, CW and AutoAttack, by the official recipe.

Paper: MART has the highest accuracy under FGSM, PGD-20 and CW with ResNet-18 (its white-box table).
Ours: the official code's recipe (configs/cifar.cfg: ResNet-18, 120 epochs, a rate of 0.01 that falls at 75, 90 and 100)
for Standard, AT, TRADES (beta 6, its own KL attack) and MART (beta 5), and the recipe that promises most for its cost,
AT for 30 epochs of a one-cycle rate (configs/cifar_at_onecycle.cfg: PreActResNet-18); all in mixed bfloat16 and from
one seed; MMA is left out. Of the 50,000 training images 5,000 validate, every third epoch, and choose the best
checkpoint; the official code judges each epoch on the test set. All 10,000 test images are judged in float32, with
weights that are rounded to float16, as they are kept. 73 of the training and 20 of the test images at hand are JPEG
copies; the latter move an accuracy by 0.2 points at most.

    python -m experiments.cifar --dataset=npz:<path to cifar10.npz>

Result: runs/results/cifar.json, and both checkpoints' weights in runs/results/cifar/. Cost: docs/reproduction.md.

On a machine that is lent for a quarter of an hour: the same command again and again, with --seconds=540 where a command
may take ten minutes, and with --only=mart for one method at a time. What must be taken home is the folder of the
results, 45 MB a run, no file above 16 MiB. A training must end on the machine that began it, since its state is large.
Whatever machine has the folder of the results, and the dataset at the same path, judges the weights that are kept; an
evaluation that was broken off resumes there if runs/cifar/<run>-float16/evaluating is brought along, and begins anew
otherwise. `python -m experiments.merge <folder>` adds what came home to the repository's results.
"""

from benchmarks import measure
from experiments import data, study
from experiments.options import begin

EPOCHS = 120  # of the official recipe
METHODS = ("standard", "at", "trades", "mart")
CHEAP = "onecycle"
CONFIGS = ("configs/cifar.cfg", "configs/cifar_at_onecycle.cfg")  # of the methods, and the cheap one
ALL_IMAGES = {"evaluation_batch_size": 500}
EVALUATIONS = {
    "paper": {"attacks": "paper", **ALL_IMAGES},
    "autoattack": {"attacks": "pgd20,autoattack", **ALL_IMAGES},  # PGD-20 again, to compare image by image
}


def recipe(config, dataset, epochs):
    """The flags of a config, which is shortened as `epochs` shortens the official recipe."""
    lines = (measure.ROOT / config).read_text().splitlines()
    flags = dict(line.removeprefix("--").split("=", 1) for line in lines if line.startswith("--"))
    del flags["examples"]  # all are judged
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
    """MART first, since the time may end; `changes`: pairs of a flag's name and its value."""
    flags, cheap = (recipe(config, dataset, epochs) for config in CONFIGS)
    made = {method: flags | {"method": method} for method in reversed(METHODS)} | {CHEAP: cheap}
    for name, flags in made.items():
        yield study.Run(f"{name}-0", {**flags, "seed": 0, **dict(changes)}, EVALUATIONS, weights=True)


if __name__ == "__main__":
    scale = {"train_examples": 0, "epochs": EPOCHS, "dataset": "tfds:cifar10"}
    table, options = begin("cifar", __doc__, **scale, changes=True)
    dataset = data.first(options.dataset, options.train_examples, options.root)
    table.do(list(runs(dataset, options.epochs, options.change)))
