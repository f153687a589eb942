"""The report's charts as matplotlib plots, for notebooks. matplotlib is imported only when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_mart import checks
from keras_mart.attacks import Attack
from keras_mart.attacks.inference import network_of
from keras_mart.attacks.survivors import as_float32, predict
from keras_mart.evaluation import Table, examples
from keras_mart.evaluation.precision import with_precision
from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.charts import heatmap
from keras_mart.evaluation.report.sections.confusion import counts_of
from keras_mart.evaluation.report.sections.epsilon import axis_of
from keras_mart.evaluation.report.sections.gallery import SHOWN, magnification
from keras_mart.evaluation.report.subject import attacks, ball
from keras_mart.evaluation.table import wilson
from keras_mart.typing import ArrayLike

if TYPE_CHECKING:  # importing this module does not import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion", "curve", "gallery", "history"]

PERCENT = {"ylabel": "accuracy, %", "ylim": (0, 101)}
BAND = 0.15  # opacity of an interval
CELL = 1.15  # inches for an image of the gallery
LONG = 2  # letters; longer names of classes are rotated


def history(
    history: keras.callbacks.History | Mapping[str, Sequence[float]],
    columns: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Plots accuracy, or other columns of a training history, over the epochs.

    Lines of training are dashed, those of validation solid, in the same colour.

    Args:
        history: the return value of `fit`, or a mapping from column names to lists with one value per epoch, such as
            `Hardened.history`.
        columns: names of the columns to plot, such as `["loss", "val_loss"]`; by default every accuracy that was
            measured in each epoch. Accuracies are plotted in percent.
        ax: the matplotlib `Axes` to draw into; by default that of a new figure.

    Returns:
        The `Axes`.

    Raises:
        ValueError: if there is no accuracy, or a column is unknown or lacks a value for some epoch (as with
            `validation_freq`).
        ImportError: if matplotlib is missing.
    """
    values = getattr(history, "history", history)
    epochs = [epoch + 1 for epoch in getattr(history, "epoch", range(max(map(len, values.values()), default=0)))]
    columns = _columns(values, columns, len(epochs))
    ax = _axes(ax)
    names = list(dict.fromkeys(column.removeprefix("val_") for column in columns))
    in_percent = all(name.endswith("accuracy") for name in names)
    for column in columns:
        name = column.removeprefix("val_")
        line, data = ("--", "training") if name == column else ("-", "validation")
        shown = np.multiply(100 if in_percent else 1, values[column])
        ax.plot(epochs, shown, line, color=f"C{names.index(name)}", label=f"{name.removesuffix('_accuracy')}, {data}")
    ax.set(xlabel="epoch", **(PERCENT if in_percent else {"ylabel": formatting.listing(names)}))
    locator: Any = ax.xaxis.get_major_locator()  # a MaxNLocator
    locator.set_params(integer=True)
    ax.legend()
    return ax


def curve(tables: Table | Mapping[str, Table], name: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Plots accuracy against epsilon, from one run of an attack that looks for the nearest adversarial images.

    The line is `Table.curve`, the band its 95% Wilson interval. A dotted line marks the epsilon of the attack's ball,
    where the accuracy is the one in the table.

    Args:
        tables: a `Table`, or a mapping from titles to tables in one norm. Each needs an attack with distances:
            `keras_mart.evaluate(model, data, {"fmn": keras_mart.FMN(threat)})`.
        name: name of the attack; by default the first with distances in each table.
        ax: the matplotlib `Axes` to draw into; by default that of a new figure.

    Returns:
        The `Axes`. Epsilon is in the attack's norm, for images in [0, 1].

    Raises:
        ValueError: if there is no table, one lacks the attack's distances, or the balls have several norms.
        ImportError: if matplotlib is missing.
    """
    tables = {"": tables} if isinstance(tables, Table) else tables
    if not tables:
        raise ValueError(f"`tables` must hold at least one table. Received: {tables!r}")
    names: dict[str, Any] = {title: name or next(iter(table.distances), None) for title, table in tables.items()}
    end = max(table.curve(names[title])[0][-1] for title, table in tables.items())
    norm, sizes = _balls([table.record.get("attacks", {}).get(names[title], {}) for title, table in tables.items()])
    marked = [size for size in sizes if size <= end]
    axis = axis_of(norm, [*marked, end])
    ax = _axes(ax)
    for title, table in tables.items():
        changes, _ = table.curve(names[title])
        epsilons, shares = table.curve(names[title], np.append(changes, axis.high))
        low, high = 100 * np.transpose([wilson(share, table.examples) for share in shares])
        (line,) = ax.step(epsilons, 100 * shares, where="post", label=title or None)
        ax.fill_between(epsilons, low, high, step="post", color=line.get_color(), alpha=BAND, linewidth=0)
    for size in marked:
        ax.axvline(size, color="gray", linestyle=":", label=f"epsilon {formatting.epsilon(size)}")
    ax.set(xlabel=axis.title, xlim=(0, axis.high), **PERCENT)
    ax.set_xticks(*zip(*axis.ticks, strict=True))
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax


def confusion(table: Table, name: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Plots the confusion matrix under an attack as a heat map.

    Each row shows the examples of one class; the stronger the colour of a cell, the larger its share of the row.
    Correct predictions have a colour of their own. With up to twelve classes, the cells show counts.

    Args:
        table: a `Table` returned by `keras_mart.evaluate`.
        name: "natural", or the name of an attack or stage; by default the attack with the lowest accuracy.
        ax: the matplotlib `Axes` to draw into; by default that of a new figure.

    Returns:
        The `Axes`.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if matplotlib is missing.
    """
    accuracy = table.accuracy
    name = min(attacks(accuracy), key=accuracy.__getitem__, default="natural") if name is None else name
    checks.one_of(name, table.predictions, "name")
    counts = counts_of(table.labels, table.predictions[name])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    levels = np.vectorize(heatmap.level, otypes=[float])(shares)
    ax = _axes(ax)
    # The first two colours of the map: correct predictions on the diagonal, wrong ones elsewhere.
    ax.imshow(1 - np.eye(len(counts)), cmap="tab10", vmin=0, vmax=9, alpha=levels, interpolation="nearest")
    if len(counts) <= heatmap.COUNTED:
        for (label, predicted), count in np.ndenumerate(counts):
            colour: dict[str, Any] = {"color": "white"} if levels[label, predicted] > heatmap.TEXT_TURNS else {}
            if count:
                ax.text(predicted, label, f"{count:,}", ha="center", va="center", **colour)
    named = range(0, len(counts), -(-len(counts) // heatmap.COUNTED))
    names = [table.class_name(label) for label in named]
    ax.set_xticks(named, names, rotation=90 if max(map(len, names)) > LONG else 0)
    ax.set_yticks(named, names)
    ax.set(xlabel="predicted class", ylabel="label", title=f"{name}: {formatting.percent(accuracy[name])} correct")
    return ax


def gallery(
    model: keras.Model,
    images: ArrayLike,
    labels: ArrayLike,
    attack: Attack,
    *,
    limit: int = SHOWN,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Plots natural images, the changes made by an attack, and the adversarial images, with the model's predictions.

    The change is magnified to the full range of grey levels, by the factor at its left: grey is no change, lighter is
    brighter, darker is darker. Unless images have three channels, the mean of the channels is shown in grey. A network
    of lower precision is attacked and evaluated in float32, as in `keras_mart.evaluate`.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        images: [batch, height, width, channels] in [0, 1].
        labels: [batch] integers, or soft labels [batch, classes].
        attack: a `keras_mart.Attack`.
        limit: number of images to show, from the start: a column for each.
        class_names: names of the classes, in the order of the labels.
        seed: integer, the seed of the attack.

    Returns:
        A new matplotlib `Figure` of three rows.

    Raises:
        ValueError: if images, labels or model cannot be attacked, or the limit is not positive.
        ImportError: if matplotlib is missing.
    """
    _pyplot()  # fails before the attack runs, which may take long
    network = with_precision(network_of(model), "float32")
    images, labels = examples.read(network, (np.asarray(images), np.asarray(labels)), limit)
    if images.ndim != 4:
        raise ValueError(f"`images` must be [batch, height, width, channels]. Received: shape {images.shape}")
    natural = as_float32(images)
    adversarial = attack(network, natural, labels, seed=seed)
    change = np.asarray(adversarial - natural)
    factor = magnification(change)
    magnified = np.clip(0.5 + factor * change, 0, 1)
    rows = {"natural": natural, f"change,\n{factor:g} times": magnified, "adversarial": adversarial}
    figure, axes = _images({title: np.asarray(each) for title, each in rows.items()})
    name_of = Table(labels, {}, {}, {}, class_names=None if class_names is None else tuple(class_names)).class_name
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set_title(f"label {name_of(label)}", fontsize="medium")
    for of_row, each in zip(axes[::2], (natural, adversarial), strict=True):
        for ax, found, label in zip(of_row, predict(network, each, labels).predicted, labels, strict=True):
            sign, colour = ("✓", "tab:green") if found == label else ("✗", "tab:red")
            ax.set_xlabel(f"{sign} {name_of(found)}", color=colour)
    return figure


def _images(rows):
    """Returns a figure with a row of [images, height, width, channels] per title, and its [rows, images] axes."""
    columns = len(next(iter(rows.values())))
    size = (CELL * columns + 0.5, CELL * len(rows) + 1)  # with space for titles and predictions
    figure, axes = _pyplot().subplots(len(rows), columns, squeeze=False, figsize=size, layout="constrained")
    for (title, images), of_row in zip(rows.items(), axes, strict=True):
        for ax, image in zip(of_row, images, strict=True):
            ax.imshow(image if image.shape[-1] == 3 else image.mean(axis=-1), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        of_row[0].set_ylabel(title)
    return figure, axes


def _columns(values, columns, epochs):
    """Returns the columns of a history to plot; each must have a value for every epoch."""
    if columns is None:
        columns = [name for name, each in values.items() if name.endswith("accuracy") and len(each) == epochs]
    if not columns:
        raise ValueError(f"`history` must hold an accuracy of each epoch. Received: {', '.join(values) or 'nothing'}")
    for name in columns:
        checks.one_of(name, values, "columns")
        if len(values[name]) != epochs:
            raise ValueError(
                f"`columns` must have a value for each epoch. Received: {name}, with {len(values[name])} of {epochs}"
            )
    return columns


def _balls(entries):
    """Returns the norm of attacks as tables record them, or `None`, and the sizes of their balls, if known."""
    balls = sorted({tuple(found) for found in map(ball, entries) if found})
    if len(norms := list(dict.fromkeys(norm for norm, _ in balls))) > 1:
        raise ValueError(f"`tables` must be in one norm. Received: {formatting.listing(norms)}")
    return next(iter(norms), None), [size for _, size in balls]


def _axes(ax):
    return _pyplot().subplots(layout="constrained")[1] if ax is None else ax


def _pyplot():
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "keras_mart[plot]"') from error
    return matplotlib.pyplot
