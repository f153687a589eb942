"""Draws the README's picture from the quickstart's run: python docs/picture.py [run directory]."""

import pathlib
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_mart as km

METHODS = {"standard": "#9a9a9a", "at": "#2b7bba", "mart": "#c8442f"}
EPSILONS = np.linspace(0, 0.3, 11)
SHOWN_EPSILON = 0.15
TARGET = pathlib.Path(__file__).parent / "images" / "quickstart.png"


def curve(model, test):
    """Returns the accuracy under PGD-20 at each epsilon."""
    accuracies = []
    for epsilon in EPSILONS:
        attacks = {"pgd20": km.PGD(km.Linf(float(epsilon)))}
        accuracies.append(km.evaluate(model, test, attacks, verbose=0)["pgd20"])
    return accuracies


def gallery(axes, models, test):
    """Draws the first test image that PGD-20 makes only the standard network misclassify, natural and attacked."""
    images, labels = (np.asarray(part) for part in next(iter(test)))
    attack, names = km.PGD(km.Linf(SHOWN_EPSILON)), ("standard", "mart")
    attacked = {name: np.asarray(attack(models[name], images, labels, seed=0)) for name in names}
    correct = {name: models[name].predict(attacked[name], verbose=0).argmax(1) == labels for name in names}
    first = int(np.argmax(correct["mart"] & ~correct["standard"]))
    labels = labels[first:][:1]
    shown = {name: each[first:][:1] for name, each in {"natural": images, **attacked}.items()}
    for axis, (name, image) in zip(axes, shown.items(), strict=True):
        axis.imshow(np.asarray(image)[0, ..., 0], cmap="gray_r", vmin=0, vmax=1)
        axis.set_axis_off()
        if name == "natural":
            axis.set_title(f"natural: {labels[0]}", fontsize=9)
        else:
            predicted = int(models[name].predict(image, verbose=0).argmax())
            axis.set_title(f"attacked; {name} sees {predicted}", fontsize=9, color=METHODS[name])


def main(directory):
    test = km.datasets.load("digits", "test")
    models = {name: keras.saving.load_model(directory / name / "best.keras") for name in METHODS}
    figure = plt.figure(figsize=(9, 3.6), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=[4, 1])
    axis = figure.add_subplot(grid[:, 0])
    for name, colour in METHODS.items():
        axis.plot(EPSILONS, np.multiply(100, curve(models[name], test)), "o-", color=colour, label=name, markersize=4)
    axis.axvline(SHOWN_EPSILON, color="black", linewidth=0.8, linestyle=":")
    axis.text(SHOWN_EPSILON, 3, "trained for this epsilon ", fontsize=8, ha="right")
    axis.set(xlabel="epsilon (images in [0, 1])", ylabel="accuracy under PGD-20, %", ylim=(0, 101))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    gallery([figure.add_subplot(grid[row, 1]) for row in range(3)], models, test)
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=130)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits-wide_resnet"))
