"""Figure 1: why misclassified examples matter.

Paper: an adversarially trained network splits the training set into S-, the images that it misclassifies, and S+, as
many images that it classifies correctly. The network is trained again with one of these sets treated differently. (a)
Leaving S- unperturbed costs much robustness, leaving S+ unperturbed little. (b) Perturbing S- with the weaker FGSM
changes hardly anything. (c) A regularisation KL(p, q) on S- helps much, on S+ little.
Ours: 5,000 training images of CIFAR-10's first four classes (JPEG-compressed copies), a tenth of which is held out for
validation, WRN-10-1, 8 epochs, three seeds; the first seed's network makes the split. The regularisation has beta 5;
with it, natural images are also forwarded in training mode, which changes BatchNorm's statistics. "AT, natural images
too" does the same with beta 0 and is the control for (c).

    python -m experiments.figure1 --dataset=npz:<path to cifar10.npz>

Result: runs/results/figure1.json. Cost: docs/reproduction.md.
"""

import keras
import numpy as np

from experiments import data, four_classes, study
from experiments.methods import TREATMENTS
from experiments.options import parse
from keras_mart.datasets import load

FINDINGS = """The paper's differences do not appear at this scale. (a) Leaving S- or S+ unperturbed costs no
robustness beyond the spread of the seeds, and gains as much natural accuracy on one set as on the other. As in the
paper, S- costs more than S+ with all three seeds, but by less than a point under PGD-20 and not under APGD-T. (b)
FGSM on S- changes hardly anything, as the paper says, but neither does FGSM on S+. (c) The regularisation gains
nothing over its control on either set. Under PGD-20 it does better on S- than on S+, by more than the choice of test
images explains but not with every seed; under APGD-T it does worse.

We suspect that the networks are undertrained after 8 epochs. S- is more than a third of the images, mostly from the
two classes that are hard to distinguish, and anything that speeds up learning helps. The paper trains many times
longer. With 300 images, differences of less than two points under APGD-T cannot be resolved."""
SEEDS = (0, 1, 2)
SETS = ("misclassified", "correct")
CONTROL = "forwarded"  # forwards natural images in training mode as the regularisation does, but with beta 0


def runs(flags, folder):
    """Yields the runs: adversarial training (the first run makes the split), then each set with each treatment."""
    for seed in SEEDS:
        yield study.Run(f"at-{seed}", {**flags, "method": "at", "seed": seed}, four_classes.EVALUATIONS)
    for seed in SEEDS:
        for treatment in TREATMENTS:
            for chosen in SETS:
                own = _own(treatment, folder, chosen, seed)
                yield study.Run(f"{treatment}-{chosen}-{seed}", {**flags, **own}, four_classes.EVALUATIONS)
        own = _own("regularised", folder, SETS[0], seed)
        yield study.Run(f"{CONTROL}-{seed}", {**flags, **own, "beta": 0}, four_classes.EVALUATIONS)


def _own(treatment, folder, chosen, seed):
    return {"method": "split", "treatment": treatment, "chosen": f"{folder}/at-0/{chosen}.npz", "seed": seed}


def split(directory, dataset):
    """Writes the indices of both sets' training examples into a run's directory, and returns the sizes of the sets."""
    training = load(dataset, "train", shuffle=False, batch_size=500)
    labels = np.concatenate([labels for _, labels in training])
    right = keras.saving.load_model(directory.last).predict(training, verbose=0).argmax(1) == labels
    numbers = [np.random.RandomState(0).permutation(np.flatnonzero(each)) for each in (~right, right)]
    size = min(map(len, numbers))
    chosen = {name: np.sort(each[:size]) for name, each in zip(SETS, numbers, strict=True)}
    for name, each in chosen.items():
        data.write(directory.path / f"{name}.npz", chosen=each)
    classes = {name: np.bincount(labels[each], minlength=labels.max() + 1).tolist() for name, each in chosen.items()}
    return {"training examples": len(labels), "misclassified": int(np.sum(~right)), "of each class": classes}


if __name__ == "__main__":
    figure, options = parse("figure1", __doc__, **four_classes.SCALE)
    dataset = data.subset(options.dataset, options.train_examples, options.root, options.classes)
    splitter, *others = runs(four_classes.recipe(dataset, options.epochs), figure.root / figure.name)
    if figure.unfinished(others):
        figure.require([splitter])
        figure.record(splitter, split=split(figure.directory(splitter), dataset))
    figure.run([splitter, *others])
