"""What the experts do: who is used, and who is right where."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from moeapps.errors import ArgumentError
from moeapps.plots.style import COLOURS, MUTED, PERCENT, SEQUENTIAL, new_figure, say_empty


def accuracy_by_confidence(
    confidence: np.ndarray, correct: Mapping[str, np.ndarray], *, bins: int = 8, unit: str = "nodes"
) -> Figure:
    """Accuracy of each expert over bins of equal size, sorted by confidence.

    A gate that works shows the weak expert above the strong one on the right, below it on the left.

    Args:
        confidence: Weight of the weak expert per row.
        correct: For each expert or mixture, whether it is right per row.
        bins: Bins, each with the same number of rows.
        unit: What a row is.

    Example:
        >>> figure = accuracy_by_confidence(np.linspace(0, 1, 8), {"weak": np.ones(8)}, bins=2)
        >>> figure.axes[0].get_ylabel()
        'accuracy'
    """
    confidence = np.asarray(confidence, dtype=float).ravel()
    for name, right in correct.items():
        if np.asarray(right).shape != confidence.shape:
            raise ArgumentError(
                f"correct[{name!r}] has shape {np.asarray(right).shape}, expected "
                f"{confidence.shape}: one value per row of confidence."
            )
    figure, axis = new_figure()
    axis.set(ylabel="accuracy", ylim=(-0.02, 1.04))
    axis.set_xlabel(f"mean confidence c of a bin; {unit} sorted by c, bins of equal size")
    axis.yaxis.set_major_formatter(PERCENT)
    if not len(confidence):
        say_empty(axis)
        return figure
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    # By rank, not by value: a gate that has made up its mind has most rows close to 0 and 1.
    places = np.arange(len(parts))
    for index, (name, right) in enumerate(correct.items()):
        values = np.array([np.asarray(right, dtype=float)[part].mean() for part in parts])
        axis.plot(
            places, values, marker="os^Dv"[index % 5], color=COLOURS[index % len(COLOURS)],
            linewidth=1.8, markersize=6, label=name,
        )  # fmt: skip
    axis.set_xticks(places, [f"{confidence[part].mean():.2f}" for part in parts])
    axis.margins(x=0.04)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    axis.set_title(f"{len(parts[0]):,} {unit} per bin", fontsize=9, color=MUTED, loc="right")
    return figure


def expert_utilisation(
    utilisation: np.ndarray, *, layer_names: Sequence[str] = (), expert_names: Sequence[str] = ()
) -> Figure:
    """Share of rows that each expert of each layer gets, as a heat map.

    Args:
        utilisation: Shares, layers by experts.
        layer_names: Name per layer.
        expert_names: Name per expert.

    Example:
        >>> figure = expert_utilisation(np.array([[0.25, 0.75]]), layer_names=["block"])
        >>> figure.axes[0].get_xlabel()
        'expert'
    """
    utilisation = np.atleast_2d(np.asarray(utilisation, dtype=float))
    layers, experts = utilisation.shape
    figure, axis = new_figure(height=max(2.2, 0.4 * layers + 1.4))
    axis.grid(visible=False)
    image = axis.imshow(
        utilisation, cmap=SEQUENTIAL, vmin=0, vmax=max(float(np.nanmax(utilisation)), 1e-9),
        aspect="auto",
    )  # fmt: skip
    axis.set_yticks(range(layers), list(layer_names) or [str(i) for i in range(layers)])
    axis.set_xticks(range(experts), list(expert_names) or [str(i) for i in range(experts)])
    axis.set(xlabel="expert", ylabel="layer")
    figure.colorbar(image, ax=axis, label="share of rows").ax.yaxis.set_major_formatter(PERCENT)
    return figure


def disagreement(pairs: np.ndarray) -> Figure:
    """Heat map of how often two experts differ.

    Args:
        pairs: ``[K, K]``; NaN where no image was answered by both.

    Example:
        >>> disagreement(np.array([[0.0, 0.3], [0.3, 0.0]])).axes[0].texts[1].get_text()
        '30%'
    """
    count = len(pairs)
    figure, axis = new_figure(width=1.6 + 0.9 * max(count, 3), height=0.9 + 0.8 * max(count, 3))
    axis.set(xlabel="expert", ylabel="expert")
    axis.grid(visible=False)
    if not count:
        say_empty(axis)
        return figure
    most = max(float(np.nanmax(pairs, initial=0)), 0.01)
    image = axis.imshow(pairs, cmap=SEQUENTIAL, vmin=0, vmax=most)
    names = [str(k) for k in range(1, count + 1)]
    axis.set_xticks(range(count), names)
    axis.set_yticks(range(count), names)
    for k in range(count):
        for other in range(count):
            share = pairs[k, other]
            axis.text(
                other, k, "none" if np.isnan(share) else f"{share:.0%}", ha="center", va="center",
                color="white" if share <= most / 2 else "black",
            )  # fmt: skip
    figure.colorbar(image, ax=axis, label="called differently").ax.yaxis.set_major_formatter(
        PERCENT
    )
    return figure
