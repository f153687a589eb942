"""Published accuracies in percent, to compare with ours: the paper's, and others' evaluations of its networks."""

from typing import NamedTuple

PAPER, RECALLED, ROBUSTBENCH, RERUNS = "paper", "recalled", "RobustBench", "public reruns"
CERTAINTY = {
    PAPER: "read in the paper",
    RECALLED: "the paper's figure, recalled from memory and not checked again",
    ROBUSTBENCH: "RobustBench's figure for the authors' network",
    RERUNS: "the lowest and the highest of three public reruns",
}
# The largest difference between the authors' own reruns, in points.
RERUNS_WITHIN = 0.8


class Cited(NamedTuple):
    """Published accuracies.

    Attributes:
        accuracy: {attack: accuracy in percent}.
        certainty: a key of `CERTAINTY`.
    """

    accuracy: dict
    certainty: str


def _row(certainty, *accuracies):
    return Cited(dict(zip(("natural", "fgsm", "pgd20", "cw"), accuracies, strict=True)), certainty)


# White box: the four-convolution network with epsilon 0.3, and ResNet-18 with epsilon 8/255.
MNIST = {
    "at": _row(RECALLED, 99.11, 97.17, 94.62, 94.25),
    "mma": _row(RECALLED, 98.92, 97.25, 95.25, 94.77),
    "trades": _row(RECALLED, 99.25, 96.67, 94.58, 94.03),
    "mart": _row(RECALLED, 98.74, 97.87, 96.48, 96.10),
}
CIFAR10 = {
    "at": _row(RECALLED, 84.44, 61.89, 47.55, 45.98),
    "mma": _row(RECALLED, 84.76, 62.08, 48.33, 45.77),
    "trades": _row(RECALLED, 82.90, 62.82, 50.25, 48.29),
    "mart": _row(PAPER, 83.07, 65.65, 55.57, 54.87),
}
# The same CIFAR-10 networks, trained again by others: (lowest, highest).
AUTOATTACK = {
    "at": Cited({"autoattack": (46.82, 48.67)}, RERUNS),
    "trades": Cited({"autoattack": (48.39, 49.45)}, RERUNS),
    "mart": Cited({"autoattack": (47.49, 47.83)}, RERUNS),
}
# MART on CIFAR-10 against examples made on another network.
BLACK_BOX = Cited({"fgsm": 82.75, "pgd10": 82.93, "pgd20": 82.70, "cw": 82.95}, PAPER)
# MART on CIFAR-10 with 500,000 unlabelled images, WRN-28-10.
UNLABELLED = Cited({"natural": 87.50, "pgd20": 65.04}, PAPER)
UNLABELLED_AUTOATTACK = Cited({"autoattack": 56.29}, ROBUSTBENCH)
