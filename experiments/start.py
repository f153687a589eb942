"""The start of training on MNIST: why the white-box table does not take the recipe's optimizer.

Paper: the recipe for all methods (that of the same authors' earlier paper, as we believe) is SGD, momentum 0.9, a rate
of 0.01 and 50 epochs, in the ball of 0.3.
Ours: AT with that optimizer in the ball of 0.3, for as many steps as the white-box table's runs have and with their
network and data; and for 3 epochs in smaller balls. AT with Adam is the white-box table's.

    python -m experiments.start --dataset=npz:<path to mnist.npz>

Result: experiments/results/start.json. Cost: docs/reproduction.md.
"""

from experiments import data, study, whitebox
from experiments.options import begin

SMALLER = (0.1, 0.2)
FEW_EPOCHS = 3
SGD = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 1e-4}


def runs(flags):
    """SGD in each ball."""
    flags = {**flags, **SGD, "method": "at", "seed": 0, "decay_epochs": ""}
    for epsilon in SMALLER:
        ball = {"epsilon": epsilon, "step_size": flags["step_size"] * epsilon / flags["epsilon"]}
        yield study.Run(f"sgd-{epsilon}-0", {**flags, **ball, "epochs": min(FEW_EPOCHS, flags["epochs"])})
    yield study.Run("sgd-0.3-0", flags)


if __name__ == "__main__":
    table, options = begin("start", __doc__, train_examples=12000, epochs=10)
    dataset = data.first(options.dataset, options.train_examples, options.root)
    table.do(list(runs(whitebox.recipe(dataset, options.epochs))))
