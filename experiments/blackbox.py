"""The black-box table: adversarial examples made on other networks, which were trained independently.

Paper: MART withstands attacks that were made on other networks better than the other methods do, and all of them far
better than white-box attacks (its black-box table).
Ours: the networks of the white-box table against attacks made on a standard and an adversarially trained network of the
same architecture, data and recipe, but another seed. The table's own AT is trained as the second of them is, and so
has the most in common with it.

    python -m experiments.whitebox --dataset=npz:<path to mnist.npz>
    python -m experiments.blackbox --dataset=npz:<path to mnist.npz>

Result: runs/results/blackbox.json. Cost: docs/reproduction.md.
"""

import dataclasses

from experiments import data, study, whitebox
from experiments.options import begin

FOUND = """Attacks that were made on another network cost the adversarially trained networks much less than attacks on
themselves: this part of the paper's claim shows. MART is not the best here: AT, ALP, MMA and TRADES are before it under
every attack, by more than on natural images. After so few epochs it is behind them in the white box too.

Examples from the AT network are the harder ones under PGD-20, for all but CLP and the standard network. The standard
network falls to what was made on the other standard network, and hardly to what was made on AT. Networks and sources
have one architecture and the same training images; MART and TRADES have three seeds, the others one."""
SOURCES = ("standard", "at")
SOURCE_SEED = 100
ATTACKS = "transfer-fgsm,transfer-pgd10,transfer-pgd20,transfer-cw"
EXAMPLES = 1000


def sources(flags):
    """The networks that are attacked."""
    for method in SOURCES:
        yield study.Run(f"{method}-{SOURCE_SEED}", {**flags, "method": method, "seed": SOURCE_SEED})


def runs(flags, models):
    """The white-box table's networks, each against the attacks on each source; `models`: source to its model's path."""
    attacks = {name: {"attacks": ATTACKS, "examples": EXAMPLES} for name in SOURCES}
    for name, path in models.items():
        attacks[name]["source"] = str(path)
    for run in whitebox.runs(flags):
        yield dataclasses.replace(run, evaluations=attacks, trained="whitebox")


if __name__ == "__main__":
    table, options = begin("blackbox", __doc__, train_examples=12000, epochs=10)
    dataset = data.first(options.dataset, options.train_examples, options.root)
    flags = whitebox.recipe(dataset, options.epochs)
    made = list(sources(flags))
    judged = list(runs(flags, {run.flags["method"]: table.directory(run).best for run in made}))
    if table.left(judged):
        table.need(made)
    table.do([*made, *judged])
