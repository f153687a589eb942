"""The start of training on MNIST: why the white-box table does not take the recipe's optimizer.

Paper: the recipe for all methods (that of the same authors' earlier paper, as we believe) is SGD, momentum 0.9, a rate
of 0.01 and 50 epochs, in the ball of 0.3.
Ours: AT with SGD in the ball of 0.3 at that rate and at three times of it, for half as many steps as the white-box
table's runs have (about 850; the recipe has 21,500 and batches of 128) and with their network, data and batches, the
rate never lowered; and for 2 epochs in smaller balls. AT with Adam is the white-box table's.

    python -m experiments.start --dataset=npz:<path to mnist.npz>

Result: runs/results/start.json. Cost: docs/reproduction.md.
"""

from experiments import data, study, whitebox
from experiments.options import begin

SMALLER = (0.1, 0.2)
HIGHER_RATE = 0.03
FEW_EPOCHS = 2
SGD = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 1e-4}


def runs(flags):
    """SGD in each ball, and at the higher rate."""
    flags = {**flags, **SGD, "method": "at", "seed": 0, "epochs": max(1, flags["epochs"] // 2), "decay_epochs": ""}
    for epsilon in SMALLER:
        ball = {"epsilon": epsilon, "step_size": flags["step_size"] * epsilon / flags["epsilon"]}
        yield study.Run(f"sgd-{epsilon}-0", {**flags, **ball, "epochs": min(FEW_EPOCHS, flags["epochs"])})
    yield study.Run("sgd-0.3-0", flags)
    yield study.Run(f"sgd-0.3-rate-{HIGHER_RATE}-0", {**flags, "learning_rate": HIGHER_RATE})


if __name__ == "__main__":
    table, options = begin("start", __doc__, train_examples=12000, epochs=10)
    dataset = data.first(options.dataset, options.train_examples, options.root)
    table.do(list(runs(whitebox.recipe(dataset, options.epochs))))
