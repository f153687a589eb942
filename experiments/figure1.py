"""Figure 1: why misclassified examples matter.

Paper: an adversarially trained network splits the training set into S-, which it misclassifies, and S+, as many that it
classifies correctly. The network is trained again, with one of them treated otherwise. (a) Leaving S- unperturbed costs
much robustness, leaving S+ unperturbed little. (b) Perturbing S- with FGSM alone changes hardly anything, S+ somewhat.
(c) A regularisation KL(p, q) on S- helps much, on S+ little.
Ours: 6,000 training images of CIFAR-10's first four classes (JPEG-compressed copies of them), WRN-10-1, 12 epochs,
three seeds; the split is of the first seed's network.

    python -m experiments.figure1 --dataset=npz:<path to cifar10.npz>

Result: experiments/results/figure1.json. Cost: docs/reproduction.md.
"""

import keras
import numpy as np

from experiments import cifar, data, study
from experiments.methods import TREATMENTS
from experiments.options import begin
from keras_mart.datasets import load

SEEDS = (0, 1, 2)
SETS = ("misclassified", "correct")


def runs(flags, folder):
    """Adversarial training, first the run that splits the training set, and each set treated in each way."""
    for seed in SEEDS:
        yield study.Run(f"at-{seed}", {**flags, "method": "at", "seed": seed}, cifar.EVALUATIONS)
    for seed in SEEDS:
        for treatment in TREATMENTS:
            for chosen in SETS:
                own = {"method": "split", "treatment": treatment, "chosen": f"{folder}/at-0/{chosen}.npz", "seed": seed}
                yield study.Run(f"{treatment}-{chosen}-{seed}", {**flags, **own}, cifar.EVALUATIONS)


def split(directory, dataset):
    """Writes the numbers of the training examples of both sets into a run; returns how many examples are what."""
    training = load(dataset, "train", shuffle=False, batch_size=500)
    labels = np.concatenate([labels for _, labels in training])
    right = keras.saving.load_model(directory.last).predict(training, verbose=0).argmax(1) == labels
    numbers = [np.random.RandomState(0).permutation(np.flatnonzero(each)) for each in (~right, right)]
    size = min(map(len, numbers))
    for name, each in zip(SETS, numbers, strict=True):
        data.write(directory.path / f"{name}.npz", chosen=np.sort(each[:size]))
    return {"training examples": len(labels), "misclassified": int(np.sum(~right)), "of each set": size}


if __name__ == "__main__":
    figure, options = begin("figure1", __doc__, **cifar.SCALE)
    dataset = data.first(options.dataset, options.train_examples, options.root, options.classes)
    splitter, *others = runs(cifar.recipe(dataset, options.epochs), figure.root / figure.name)
    if figure.left(others):
        figure.need([splitter])
        figure.record(splitter, split=split(figure.directory(splitter), dataset))
    figure.do([splitter, *others])
