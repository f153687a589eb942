"""Unlabelled data: MART with 6,000 labels, with 54,000 images more that have none, and with all 60,000 labels.

Paper: unlabelled images, labelled by a network that was trained on the labelled ones, make MART more robust than the
other methods become with them (its last table, with CIFAR-10 and 500,000 images).
Ours: MNIST and the recipe of the white-box table, one seed. Of the 6,000 labelled images 600 validate. A standard
network trained on the others labels the rest. With the rest, half of each batch is from there, with the labels found
or, to compare, the true ones. All three see as many images in training: the labelled ones twice as often without the
rest; of the rest a tenth is drawn for each epoch, so that about two thirds of them are ever seen.

    python -m experiments.unlabelled --dataset=npz:<path to mnist.npz>

Result: runs/results/unlabelled.json. Cost: docs/reproduction.md.
"""

import sys

from experiments import data, study, whitebox
from experiments.options import begin
from keras_mart import datasets, serving

FOUND = """No gain shows at this scale. The rest brings nothing even with its true labels, so that the labeller's errors
are not what is amiss. The network of the labelled alone is hardly better on the images that it is trained on than on
others, and those with the rest no better: after so few steps they are short of training, not of images.

Under AutoAttack both trainings with the rest are behind the labelled alone by more than chance among the test images
explains, but by no more than MART's seeds in the white-box table lie apart; there is one seed here. No other method was
trained with the rest."""
FRACTION = 0.5  # of a batch, from the rest


def rest(dataset, labelled, root):
    """(name, arrays) of the dataset of the training images behind the first `labelled`."""
    (images, labels), _ = data.whole(dataset)
    arrays = {"image": images[labelled:], "label": labels[labelled:]}
    return data.kept(f"{data.stem(dataset)}-from-{labelled}", root, arrays), arrays


def runs(part, rest, epochs, labeller):
    """The three trainings."""
    own, extra = {"method": "mart", "seed": 0}, {"extra": rest, "extra_fraction": FRACTION}
    alone, mixed = (whitebox.recipe(part, each) | own for each in (round(epochs / FRACTION), epochs))
    yield study.Run("labelled", alone, whitebox.EVALUATIONS)
    yield study.Run("unlabelled", mixed | extra | {"labeller": str(labeller)}, whitebox.EVALUATIONS)
    yield study.Run("all", mixed | extra, whitebox.EVALUATIONS)


if __name__ == "__main__":
    table, options = begin("unlabelled", __doc__, train_examples=6000, epochs=10)
    if options.train_examples < 1:
        sys.exit("--train_examples must leave some without labels here. Received: 0, which is all")
    part = data.first(options.dataset, options.train_examples, options.root)
    others, arrays = rest(options.dataset, options.train_examples, options.root)
    labeller = study.Run("labeller", whitebox.recipe(part, options.epochs) | {"method": "standard", "seed": 0})
    teacher = table.directory(labeller).best
    everything = list(runs(part, others, options.epochs, teacher))
    if table.left(everything):
        table.need([labeller])
        right = datasets.pseudo_labels(serving.load(teacher), arrays["image"]) == arrays["label"]
        table.record(labeller, labels={"images": len(right), "right": int(right.sum())})
    table.do([labeller, *everything])
