"""The start of training on MNIST: why the white-box table takes three times the recipe's rate.

Paper: the recipe for all methods (that of the same authors' earlier paper, as we believe) is SGD, momentum 0.9, a rate
of 0.01 and 50 epochs, in the ball of 0.3.
Ours: AT at that rate, for half as many steps as the white-box table's runs have (about 850; the recipe has 21,500 and
batches of 128) and with their network, data and batches, the rate never lowered; and for 2 epochs in smaller balls. All
else like the table's runs: MART at ten times the rate, AT and MART with Adam. The runs at three times the rate are the
table's.

    python -m experiments.start --dataset=npz:<path to mnist.npz>

Result: runs/results/start.json. Cost: docs/reproduction.md.
"""

from experiments import data, study, whitebox
from experiments.options import begin

FOUND = """At the recipe's rate AT stays at chance for three epochs; the smaller the ball, the sooner it starts. At
three times the rate it starts in the second epoch. At ten times, MART starts and falls back to chance, where it stays.
Adam starts in the first epoch and is overtaken: after as many epochs of the same schedule, AT and MART are both far
less robust with it than with SGD at three times the rate.

One seed each, so that epochs may shift. The rate was chosen by these validation figures of AT and MART; the other
methods might do better with another."""
RATE = 0.01  # of the recipe
HIGHER_RATE = 0.1
BALLS = (0.1, 0.2, 0.3)
FEW_EPOCHS = 2
ADAM = {"optimizer": "adam", "learning_rate": 0.001, "weight_decay": 0}


def runs(flags):
    """AT at the recipe's rate in each ball; what else might start better."""
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
    table, options = begin("start", __doc__, train_examples=12000, epochs=10)
    dataset = data.first(options.dataset, options.train_examples, options.root)
    table.do(list(runs(whitebox.recipe(dataset, options.epochs))))
