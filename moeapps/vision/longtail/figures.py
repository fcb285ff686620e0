"""Figures of a long-tail run: who is right where, how sure, and how many experts it took."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from moeapps.plots import disagreement, reliability, training_curves
from moeapps.plots.style import COLOURS, PERCENT, new_figure, say_empty

Arrays = Mapping[str, NDArray[np.generic]]

CAPTIONS = {
    "groups": (
        "Test accuracy of the mixture and of each expert on the classes with many, a medium number "
        "and few training images. Experts that specialise differ most on the right."
    ),
    "classes": (
        "Test accuracy of each class against its number of training images. A method for long "
        "tails lifts the left end without lowering the right one."
    ),
    "reliability": (
        "Observed accuracy against confidence, the area of a dot the share of the test images. "
        "Below the diagonal the network is too sure of itself."
    ),
    "disagreement": (
        "Share of the test images that two experts call differently. Experts that always agree "
        "are one expert; ones that agree on nothing have little to average."
    ),
    "experts_used": (
        "Mean number of experts that the test images of each class used. An early exit should "
        "spend them on the classes that need them."
    ),
    "engagement": (
        "Accuracy against the mean number of experts per image, when images leave as soon as the "
        "experts so far are sure enough. Each point is a threshold, tried on the test images "
        "themselves: choose the one to use on validation images."
    ),
    "curves_accuracy": "Validation accuracy over the epochs, all classes alike and by group.",
    "curves_loss": "Losses over the epochs; the training loss is the method's own.",
}


def figures(results: Arrays, metrics: Arrays) -> dict[str, Figure]:
    """Every figure for which the run has data, by name; :data:`CAPTIONS` says what each shows.

    Args:
        results: Arrays of ``results.npz``; may be empty, as in a run that was never tested.
        metrics: Columns of ``metrics.csv``.

    Example:
        >>> drawn = figures({}, {"epoch": np.arange(2.0), "train/loss": np.array([2.0, 1.0])})
        >>> list(drawn)
        ['curves_loss']
    """
    drawn: dict[str, Figure] = {}
    if "group_accuracy" in results:
        counts = np.asarray(results["class_counts"])
        drawn["groups"] = group_figure(
            np.asarray(results["group_accuracy"], float),
            [str(name) for name in results["group_names"]],
            np.asarray(results["group_sizes"]),
        )
        drawn["classes"] = class_figure(np.asarray(results["class_accuracy"], float)[0], counts)
        drawn["reliability"] = reliability(np.asarray(results["reliability"], float))
    if "disagreement" in results:
        drawn["disagreement"] = disagreement(np.asarray(results["disagreement"], float))
        used = np.asarray(results["experts_used"], float)
        if np.nanmin(used) < len(results["disagreement"]):
            drawn["experts_used"] = used_figure(used, np.asarray(results["class_counts"]))
        drawn["engagement"] = engagement_figure(np.asarray(results["engagement"], float))
    epochs = np.asarray(metrics.get("epoch", np.zeros(0)), dtype=float)
    accuracies = {
        name.removeprefix("val/accuracy/").removeprefix("val/").replace("_", " "): values
        for name, values in metrics.items()
        if name.startswith(("val/accuracy/", "val/balanced_accuracy"))
    }
    losses = {name: metrics[name] for name in ("train/loss", "val/loss") if name in metrics}
    if accuracies:
        drawn["curves_accuracy"] = training_curves(
            epochs, accuracies, ylabel="validation accuracy", percent=True
        )
    if losses:
        drawn["curves_loss"] = training_curves(epochs, losses, ylabel="loss (nats)")
    return drawn


def group_figure(
    accuracy: NDArray[np.float64], names: list[str], sizes: NDArray[np.generic]
) -> Figure:
    r"""Bars of accuracy by class frequency, for the mixture and each expert.

    Args:
        accuracy: ``[1 + K, groups]``, the mixture first; NaN for an empty group.
        names: Of the groups.
        sizes: Classes of each group.

    Example:
        >>> figure = group_figure(np.full((3, 2), 0.5), ["many", "few"], np.array([4, 6]))
        >>> [text.get_text() for text in figure.axes[0].get_xticklabels()]
        ['many\n4 classes', 'few\n6 classes']
    """
    figure, axis = new_figure()
    width = 0.8 / len(accuracy)
    for row, values in enumerate(accuracy):
        label = "mixture" if row == 0 else f"expert {row}"
        places = np.arange(len(names)) + (row - (len(accuracy) - 1) / 2) * width
        colour = COLOURS[6] if row == 0 else COLOURS[(row - 1) % 6]
        bars = axis.bar(places, np.nan_to_num(values), width * 0.92, color=colour,
                        label="network" if len(accuracy) == 1 else label)  # fmt: skip
        texts = ["none" if np.isnan(value) else f"{100 * value:.0f}" for value in values]
        axis.bar_label(bars, texts, fontsize=7, padding=1)
    axis.set_xticks(
        range(len(names)),
        [f"{name}\n{size} classes" for name, size in zip(names, sizes, strict=True)],
    )
    axis.set(ylabel="test accuracy", ylim=(0, 1.05))
    axis.yaxis.set_major_formatter(PERCENT)
    axis.grid(visible=False, axis="x")
    figure.legend(loc="outside upper center", ncols=min(len(accuracy), 4), frameon=False)
    return figure


def class_figure(accuracy: NDArray[np.float64], counts: NDArray[np.generic]) -> Figure:
    """Accuracy of each class against its training images, with the mean over equal parts.

    Args:
        accuracy: ``[C]``; NaN for a class without test images.
        counts: Training images ``[C]``.

    Example:
        >>> class_figure(np.array([0.9, 0.2]), np.array([100, 5])).axes[0].get_xscale()
        'log'
    """
    figure, axis = new_figure()
    axis.set(xlabel="training images of the class", ylabel="test accuracy", xscale="log")
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PERCENT)
    known = ~np.isnan(accuracy)
    if not known.any():
        say_empty(axis)
        return figure
    counts, accuracy = counts[known].astype(float), accuracy[known]
    size = 40 if len(counts) <= 20 else 14 if len(counts) <= 400 else 4
    axis.scatter(counts, accuracy, s=size, color=COLOURS[0], alpha=0.6, linewidths=0, label="class")
    if len(counts) >= 30:
        parts = np.array_split(np.argsort(counts, kind="stable"), min(10, len(counts) // 5))
        axis.plot(
            [np.exp(np.log(counts[part]).mean()) for part in parts],
            [accuracy[part].mean() for part in parts],
            color=COLOURS[1], linewidth=2, marker="s", markersize=4, label="mean of neighbours",
        )  # fmt: skip
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return figure


def used_figure(used: NDArray[np.float64], counts: NDArray[np.generic]) -> Figure:
    """Mean experts per image of each class against its training images.

    Args:
        used: ``[C]``.
        counts: Training images ``[C]``.

    Example:
        >>> used_figure(np.array([1.1, 2.5]), np.array([100, 5])).axes[0].get_ylabel()
        'experts used per test image'
    """
    figure, axis = new_figure()
    axis.set(xlabel="training images of the class", ylabel="experts used per test image")
    axis.set(xscale="log")
    size = 40 if len(counts) <= 20 else 14
    axis.scatter(counts.astype(float), used, s=size, color=COLOURS[2], alpha=0.7, linewidths=0)
    axis.set_ylim(0.9, np.nanmax(used) + 0.2)
    return figure


def engagement_figure(points: NDArray[np.float64]) -> Figure:
    """Accuracy against the mean number of experts.

    Args:
        points: Threshold, mean experts, accuracy, ``[points, 3]``.

    Example:
        >>> engagement_figure(np.array([[0.0, 1.0, 0.6], [1.0, 3.0, 0.7]])).axes[0].get_xlabel()
        'mean number of experts per image'
    """
    figure, axis = new_figure()
    axis.set(xlabel="mean number of experts per image", ylabel="test accuracy")
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=1))
    axis.plot(points[:, 1], points[:, 2], color=COLOURS[0], marker="o", markersize=4, linewidth=1.5)
    return figure
