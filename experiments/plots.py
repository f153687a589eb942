"""Draws the report's pictures."""

import statistics

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from experiments import tables
from experiments import whitebox as whitebox_study
from experiments.cells import groups, validations, values
from experiments.figure2 import BETAS
from experiments.tables import ATTACKS, FIVE, NAMES, PANELS, PARTS, SETS, SHARES
from keras_mart.evaluation.table import wilson

COLOURS = {
    "standard": "#9a9a9a", "at": "#0072b2", "alp": "#56b4e9", "clp": "#cc79a7", "mma": "#e69f00", "trades": "#009e73",
    "mart": "#d55e00",
}  # fmt: skip
MARKERS = {"standard": "x", "at": "s", "alp": "v", "clp": "^", "mma": "D", "trades": "P", "mart": "o"}
# Colours and lines of the ablations in each panel.
ABLATIONS = (("#332288", "--"), ("#44aa99", "-."), ("#882255", ":"))
OF_SETS = {"misclassified": ("#882255", "-"), "correct": ("#999933", "--")}
LINES = {"natural": ":", "pgd20": "-", "apgd-t": "--"}
WIDTH, DPI = 9, 130  # in inches, dots per inch
LEAST_ERROR = 0.002  # smallest error that the stretched axis shows
STRETCHED = (0, 50, 80, 90, 95, 98, 99, 99.5)
EPOCHS = {"xlabel": "epoch", "ylabel": "accuracy under PGD-20, %"}
TEST = "accuracy on the test set, %"


def whitebox(results):
    """Draws the robust accuracy of each epoch, and the best checkpoint's accuracy under the five attacks."""
    found = groups(results)
    figure = _figure(4.4)
    left, right = figure.subplots(1, 2)
    for number, method in enumerate(whitebox_study.METHODS):
        runs, style = found.get(method, {}), {"color": COLOURS[method], "marker": MARKERS[method], "markersize": 4}
        _curve(left, runs, NAMES[method], linewidth=1.2, **style)
        for length, line in {"long": "--", "slow": ":", "whole": "-."}.items():
            for seed, record in found.get(f"{method}-{length}", {}).items():
                _curve(left, {seed: record}, None, linestyle=line, linewidth=1.2, **style)
        place = 0.11 * (number - (len(whitebox_study.METHODS) - 1) / 2)
        dots = {position + place: values(runs, attack, "best") for position, attack in enumerate(FIVE)}
        _dots(right, dots, linestyle="none", linewidth=1, **style)
    left.set(**EPOCHS)
    right.set(ylabel=TEST, xlim=(-0.5, len(FIVE) - 0.5))
    right.set_xticks(range(len(FIVE)), [ATTACKS[each] for each in FIVE])
    for axis in (left, right):
        _stretch(axis)
        _clear(axis)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(NAMES), frameon=False)
    return figure


def figure1(results):
    """Draws the robust accuracy of each epoch, with each treatment of each set and without treatment."""
    found = groups(results)
    figure = _figure(3.4)
    for letter, axis, treatment in zip("abc", figure.subplots(1, 3, sharey=True), tables.TREATMENTS, strict=True):
        base, label = next(iter(tables.CONTROL.items())) if treatment == "regularised" else ("at", NAMES["at"])
        _curve(axis, found.get(base, {}), label, color=COLOURS["at"], linestyle="-")
        for chosen, (colour, line) in OF_SETS.items():
            label = f"{SETS[chosen]} {tables.TREATMENTS[treatment]}"
            _curve(axis, found.get(f"{treatment}-{chosen}", {}), label, color=colour, linestyle=line)
        axis.set(**EPOCHS, title=f"({letter})")
        _clear(axis)
        _legend(axis, loc="lower right")
        axis.label_outer()
    return figure


def figure2(results):
    """Draws the ablations of MART epoch by epoch, then the shares and both methods' betas."""
    found = groups(results)
    figure = _figure(6.6)
    axes = dict(zip("abcd", figure.subplots(2, 2).flat, strict=True))
    for letter, parts in PANELS.items():
        for part, (colour, line) in zip(parts, ((COLOURS["mart"], "-"), *ABLATIONS), strict=True):
            _curve(axes[letter], found.get(part, {}), PARTS[part], color=colour, linestyle=line)
        axes[letter].set(**EPOCHS)
    for attack, shift in zip(tables.TWO, (-0.008, 0.008), strict=True):  # keeps the bars apart
        runs = {share + shift: found.get(name, {}) for share, name in SHARES.items()}
        _against(axes["c"], runs, attack, f"MART, {ATTACKS[attack]}", "mart")
    axes["c"].set(xlabel="share of the examples with the second term", ylabel=TEST)
    for method, shift in (("mart", 0.97), ("trades", 1.03)):
        names = {beta * shift: tables.beta_run(method, beta) for beta in BETAS}
        runs = {place: _first(found.get(name, {})) for place, name in names.items()}
        for attack in ("natural", "pgd20"):
            _against(axes["d"], runs, attack, f"{NAMES[method]}, {ATTACKS[attack]}", method)
    axes["d"].set(xlabel="beta", ylabel=TEST, xscale="log")
    axes["d"].set_xticks(BETAS, [f"{beta:g}" for beta in BETAS], minor=False)
    axes["d"].xaxis.set_minor_locator(NullLocator())
    for letter, axis in axes.items():
        axis.set_title(f"({letter})")
        _clear(axis)
        _legend(axis, **({"loc": "lower right", "ncols": 2} if letter == "d" else {}))
    return figure


def _figure(height):
    figure = Figure((WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return figure


def _curve(axis, runs, label, **style):
    """Draws the validation accuracy of each epoch: the mean over the seeds, and a band from lowest to highest."""
    epochs = {}
    for record in runs.values():
        for epoch, accuracy in validations(record).items():
            epochs.setdefault(epoch, []).append(100 * accuracy)
    if epochs:
        numbers = sorted(epochs)
        axis.plot(numbers, [statistics.mean(epochs[each]) for each in numbers], label=label, **style)
        bounds = ([bound(epochs[each]) for each in numbers] for bound in (min, max))
        axis.fill_between(numbers, *bounds, color=style["color"], alpha=0.15, linewidth=0)
        axis.xaxis.get_major_locator().set_params(integer=True)


def _first(runs):
    """Returns the run with seed 0 as {seed: record}."""
    return {seed: record for seed, record in runs.items() if seed == 0}


def _against(axis, runs, attack, label, method):
    """Draws the last checkpoint's accuracy as a function of a number; `runs`: {number: {seed: record}}."""
    found = {number: values(each, attack, "last") for number, each in runs.items()}
    style = {"color": COLOURS[method], "linestyle": LINES[attack], "marker": MARKERS[method], "markersize": 4}
    _dots(axis, found, label=label, elinewidth=0.8, capsize=2, **style)


def _dots(axis, found, **style):
    """Draws the mean over the seeds with its 95% interval over the images, and each seed as a small dot.

    Args:
        axis: to draw on.
        found: {position: {seed: `Value`}}.
        style: for `errorbar`.
    """
    found = {place: each for place, each in found.items() if each}
    if not found:
        return
    means = [statistics.mean(each.accuracy for each in seeds.values()) for seeds in found.values()]
    examples = [min(each.examples for each in seeds.values()) for seeds in found.values()]
    bounds = np.transpose([wilson(*each) for each in zip(means, examples, strict=True)])
    axis.errorbar(list(found), 100 * np.array(means), 100 * np.abs(bounds - means), **style)
    for place, seeds in found.items():
        if len(seeds) > 1:
            heights = [100 * each.accuracy for each in seeds.values()]
            axis.plot([place] * len(heights), heights, ".", color="black", markersize=2.5, zorder=3)


def _stretch(axis):
    """Stretches the axis towards 100%: it shows the logarithm of the error."""

    def forward(accuracies):
        return -np.log10(np.maximum(LEAST_ERROR, 1 - np.asarray(accuracies) / 100))

    def inverse(heights):
        return 100 * (1 - 10 ** -np.asarray(heights))

    axis.set_yscale("function", functions=(forward, inverse))
    axis.yaxis.set_major_locator(FixedLocator(STRETCHED))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def _clear(axis):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def _legend(axis, **place):
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9, **place)


PICTURES = {"whitebox": whitebox, "figure1": figure1, "figure2": figure2}


def save(name, results, folder):
    """Writes a study's picture to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    PICTURES[name](results).savefig(folder / f"{name}.png", dpi=DPI)
