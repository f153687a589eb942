"""The black-box table: adversarial examples made on other networks, which were trained independently.

Paper: MART is more robust to attacks made on other networks than the other methods are, and all methods are far more
robust to them than to white-box attacks (its black-box table).
Ours: the networks of the white-box table under attacks made on a standard and an adversarially trained network with the
same architecture, data and recipe but another seed. The adversarially trained one is trained like the table's own AT,
which therefore has the most in common with it.

    python -m experiments.whitebox --dataset=npz:<path to mnist.npz>
    python -m experiments.blackbox --dataset=npz:<path to mnist.npz>

Result: runs/results/blackbox.json. Cost: docs/reproduction.md.
"""

import dataclasses

from experiments import data, study, whitebox
from experiments.options import parse

FINDINGS = """Attacks made on another network cost the adversarially trained networks much less accuracy than attacks
on themselves: this part of the paper's claim is reproduced. MART is not the best here: AT, ALP, MMA and TRADES are
ahead of it under every attack, by more than on natural images. After so few epochs it is behind them under white-box
attacks too.

Under PGD-20, examples made on the AT network are harder than those made on the standard one, except for CLP and the
standard network. The standard network is fooled by examples made on the other standard network, but hardly by those
made on AT. Networks and sources share one architecture and the same training images; MART and TRADES have three
seeds, the others one."""
SOURCES = ("standard", "at")
SOURCE_SEED = 100
ATTACKS = "transfer-fgsm,transfer-pgd10,transfer-pgd20,transfer-cw"
EXAMPLES = 1000


def sources(flags):
    """Yields the runs that train the networks on which the examples are made."""
    for method in SOURCES:
        yield study.Run(f"{method}-{SOURCE_SEED}", {**flags, "method": method, "seed": SOURCE_SEED})


def runs(flags, models):
    """Yields evaluations of the white-box table's networks under the attacks made on each source.

    Args:
        flags: of the white-box table's runs.
        models: maps each source to the path of its model.
    """
    attacks = {name: {"attacks": ATTACKS, "examples": EXAMPLES} for name in SOURCES}
    for name, path in models.items():
        attacks[name]["source"] = str(path)
    for run in whitebox.runs(flags):
        yield dataclasses.replace(run, evaluations=attacks, trained="whitebox")


if __name__ == "__main__":
    table, options = parse("blackbox", __doc__, train_examples=12000, epochs=10)
    dataset = data.subset(options.dataset, options.train_examples, options.root)
    flags = whitebox.recipe(dataset, options.epochs)
    source_runs = list(sources(flags))
    evaluated = list(runs(flags, {run.flags["method"]: table.directory(run).best for run in source_runs}))
    if table.unfinished(evaluated):
        table.require(source_runs)
    table.run([*source_runs, *evaluated])
