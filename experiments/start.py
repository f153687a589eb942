"""The start of training on MNIST: why the white-box table uses three times the recipe's learning rate.

Paper: the recipe for all methods (probably that of the same authors' earlier paper) is SGD with momentum 0.9, a
learning rate of 0.01 and 50 epochs, with epsilon 0.3.
Ours: AT at that rate, for half as many steps as the white-box table's runs (about 850; the recipe has 21,500, with
batches of 128), with their network, data and batches and a constant rate; and for 2 epochs with smaller epsilons. With
the other settings of the table's runs, also MART at ten times the rate, and AT and MART with Adam. The runs at three
times the rate are the table's.

    python -m experiments.start --dataset=npz:<path to mnist.npz>

Result: runs/results/start.json. Cost: docs/reproduction.md.
"""

from experiments import data, study, whitebox
from experiments.options import parse

FINDINGS = """At the recipe's rate AT stays at chance for three epochs; the smaller epsilon is, the sooner it starts
to learn. At three times the rate it starts in the second epoch. At ten times the rate MART starts, falls back to
chance and stays there. Adam starts in the first epoch but is overtaken: after as many epochs of the same schedule,
AT and MART are both far less robust with it than with SGD at three times the rate.

With one seed each, the epochs at which learning starts are not exact. The rate was chosen by these validation
accuracies of AT and MART; the other methods might do better with another rate."""
RATE = 0.01  # the recipe's
HIGHER_RATE = 0.1
BALLS = (0.1, 0.2, 0.3)
FEW_EPOCHS = 2
ADAM = {"optimizer": "adam", "learning_rate": 0.001, "weight_decay": 0}


def runs(flags):
    """Yields the runs: AT at the recipe's rate for each epsilon, then a higher rate and Adam."""
    half = max(1, flags["epochs"] // 2)
    for epsilon in BALLS:
        own = {
            "epsilon": epsilon, "step_size": flags["step_size"] * epsilon / flags["epsilon"], "learning_rate": RATE,
            "epochs": half if epsilon == flags["epsilon"] else min(FEW_EPOCHS, half), "decay_epochs": "",
        }  # fmt: skip
        yield study.Run(f"sgd-{epsilon}-0", {**flags, **own, "method": "at", "seed": 0})
    yield study.Run(f"mart-rate-{HIGHER_RATE}-0", {**flags, "learning_rate": HIGHER_RATE, "method": "mart", "seed": 0})
    for method in ("at", "mart"):
        yield study.Run(f"{method}-adam-0", {**flags, **ADAM, "method": method, "seed": 0})


if __name__ == "__main__":
    table, options = parse("start", __doc__, train_examples=12000, epochs=10)
    dataset = data.subset(options.dataset, options.train_examples, options.root)
    table.run(list(runs(whitebox.recipe(dataset, options.epochs))))
