"""The start of training on MNIST: why the white-box table does not take the paper's optimizer.

Paper: all methods train with SGD, momentum 0.9 and a rate of 0.01, in the ball of 0.3.
Ours: AT with that optimizer, in balls of 0.1, 0.2 and 0.3, and with Adam at 0.001 in that of 0.3; the white-box
table's network and data, three epochs.

    python -m experiments.start --dataset=npz:<path to mnist.npz>

Result: experiments/results/start.json. Cost: docs/reproduction.md.
"""

from experiments import data, study, whitebox

EPSILONS = (0.1, 0.2, 0.3)
SGD = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 1e-4}


def runs(flags):
    """SGD in each ball, and the white-box table's optimizer."""
    flags = {**flags, "method": "at", "seed": 0, "decay_epochs": ""}
    for epsilon in EPSILONS:
        ball = {"epsilon": epsilon, "step_size": flags["step_size"] * epsilon / flags["epsilon"]}
        yield study.Run(f"sgd-{epsilon}-0", flags | SGD | ball)
    yield study.Run("adam-0.3-0", flags)


if __name__ == "__main__":
    table, options = study.begin("start", __doc__, train_examples=12000, epochs=3)
    dataset = data.first(options.dataset, options.train_examples, options.root)
    table.do(list(runs(whitebox.recipe(dataset, options.epochs))))
