"""Unlabelled data: MART with 6,000 labelled images, with 54,000 more unlabelled ones, and with all 60,000 labels.

Paper: with unlabelled images, labelled by a network that was trained on the labelled ones, MART becomes more robust
than the other methods do (its last table, with CIFAR-10 and 500,000 images).
Ours: MNIST and the recipe of the white-box table, one seed. Of the 6,000 labelled images 600 are held out for
validation. A standard network trained on the other 5,400 labels the remaining 54,000 images. Trainings with these take
half of each batch from them, with the predicted labels or, for comparison, the true ones. All three trainings see the
same number of images: without the additional images, the labelled ones are seen twice as often. A tenth of the
additional images is drawn for each epoch, so about two thirds of them are ever seen.

    python -m experiments.unlabelled --dataset=npz:<path to mnist.npz>

Result: runs/results/unlabelled.json. Cost: docs/reproduction.md.
"""

import sys

from experiments import data, study, whitebox
from experiments.options import parse
from keras_mart import datasets, serving

FINDINGS = """No gain appears at this scale. The additional images do not help even with their true labels, so the
predicted labels' errors are not the cause. The network trained only on the labelled images is hardly better on its
training images than on others, and the networks trained with additional images are not better at all: after so few
steps, they need more training rather than more images.

Under AutoAttack both trainings with additional images are behind the one without by more than the choice of test
images explains, but by no more than MART's seeds differ in the white-box table; here there is one seed. No other
method was trained with additional images."""
FRACTION = 0.5  # of a batch, from the additional images


def additional(dataset, labelled, root):
    """Writes the training images after the first `labelled` as a dataset, and returns its name and arrays."""
    (images, labels), _ = data.training_and_test(dataset)
    arrays = {"image": images[labelled:], "label": labels[labelled:]}
    return data.store(f"{data.stem(dataset)}-from-{labelled}", root, arrays), arrays


def runs(labelled, extra, epochs, labeller):
    """Yields the three trainings.

    Args:
        labelled, extra: names of the datasets of labelled and of additional images.
        epochs: number of epochs with additional images.
        labeller: path of the network that predicts their labels.
    """
    own, extra = {"method": "mart", "seed": 0}, {"extra": extra, "extra_fraction": FRACTION}
    unmixed, mixed = (whitebox.recipe(labelled, each) | own for each in (round(epochs / FRACTION), epochs))
    yield study.Run("labelled", unmixed, whitebox.EVALUATIONS)
    yield study.Run("unlabelled", mixed | extra | {"labeller": str(labeller)}, whitebox.EVALUATIONS)
    yield study.Run("all", mixed | extra, whitebox.EVALUATIONS)


if __name__ == "__main__":
    table, options = parse("unlabelled", __doc__, train_examples=6000, epochs=10)
    if options.train_examples < 1:
        sys.exit("--train_examples must leave some images unlabelled. Received: 0, which takes all")
    labelled = data.subset(options.dataset, options.train_examples, options.root)
    extra, arrays = additional(options.dataset, options.train_examples, options.root)
    labeller = study.Run("labeller", whitebox.recipe(labelled, options.epochs) | {"method": "standard", "seed": 0})
    labelling_network = table.directory(labeller).best
    trainings = list(runs(labelled, extra, options.epochs, labelling_network))
    if table.unfinished(trainings):
        table.require([labeller])
        correct = datasets.pseudo_labels(serving.load(labelling_network), arrays["image"]) == arrays["label"]
        table.record(labeller, labels={"images": len(correct), "right": int(correct.sum())})
    table.run([labeller, *trainings])
