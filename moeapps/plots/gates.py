"""What a gate decided, seen against a property of the rows."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from moeapps.errors import ArgumentError
from moeapps.plots.style import COLOURS, MIXTURE, MUTED, PERCENT, SEQUENTIAL, new_figure, say_empty

_NUDGE = 0.02


def confidence_against(
    confidence: np.ndarray,
    x: np.ndarray,
    *,
    xlabel: str,
    bins: int = 10,
    groups: np.ndarray | None = None,
    group_names: Sequence[str] = (),
    max_points: int = 4000,
    seed: int = 0,
) -> Figure:
    """Confidence of each row against one number per row, with the median per bin.

    Points are moved by up to 0.02 each way so that they do not hide each other; the line is exact.

    Args:
        confidence: Weight of the weak expert per row, in [0, 1].
        x: The number, in [0, 1]; rows where it is NaN are left out.
        xlabel: What ``x`` is, with its unit.
        bins: Bins of the median line.
        groups: Whole number per row that picks the colour.
        group_names: Name per group.
        max_points: Draw at most this many points, chosen at random; the line uses all.
        seed: Of that choice.

    Example:
        >>> figure = confidence_against(np.array([0.1, 0.9]), np.array([0.8, 0.2]), xlabel="x")
        >>> len(figure.axes)
        1
    """
    confidence, x = _rows(confidence, x)
    keep = np.isfinite(x)
    labels = np.zeros(len(x), dtype=int) if groups is None else np.asarray(groups).astype(int)
    confidence, x, labels = confidence[keep], x[keep], labels[keep]
    figure, axis = new_figure()
    axis.set(
        xlabel=xlabel,
        ylabel="confidence c (weight of the weak expert)",
        ylim=(-0.05, 1.05),
    )
    if not len(x):
        say_empty(axis)
        return figure
    rng = np.random.default_rng(seed)
    shown = rng.permutation(len(x))[:max_points]
    # Confidence piles up at 0 and 1 and shares of few neighbours at few values: without a nudge
    # the points hide each other.
    nudge = rng.uniform(-_NUDGE, _NUDGE, size=(2, len(shown)))
    for group in np.unique(labels):
        rows = labels[shown] == group
        name = group_names[group] if group < len(group_names) else None
        axis.scatter(
            x[shown][rows] + nudge[0, rows], confidence[shown][rows] + nudge[1, rows], s=9,
            alpha=0.4, linewidths=0, color=COLOURS[int(group) % len(COLOURS)], label=name,
        )  # fmt: skip
    centres, middle, low, high = _binned(x, confidence, bins)
    axis.fill_between(centres, low, high, color="black", alpha=0.10, linewidth=0)
    axis.plot(
        centres, middle, color="black", marker="o", markersize=4, linewidth=1.6,
        label="median and quartiles",
    )  # fmt: skip
    legend = figure.legend(loc="outside upper left", ncols=3, frameon=False, markerscale=2)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    return figure


def confidence_histogram(
    confidence: np.ndarray, *, threshold: float = 0.5, bins: int = 40, unit: str = "nodes"
) -> Figure:
    """How the confidence is spread over the rows.

    Args:
        confidence: Weight of the weak expert per row, in [0, 1].
        threshold: Rows above it go to the weak expert alone in ``hard`` mode.
        bins: Bars.
        unit: What a row is.

    Example:
        >>> figure = confidence_histogram(np.array([0.1, 0.9]))
        >>> figure.axes[0].get_ylabel()
        'share of nodes'
    """
    confidence = np.asarray(confidence, dtype=float).ravel()
    figure, axis = new_figure()
    axis.set(xlabel="confidence c (weight of the weak expert)", ylabel=f"share of {unit}")
    axis.set_xlim(0, 1)
    if not len(confidence):
        say_empty(axis)
        return figure
    share = np.full(len(confidence), 1.0 / len(confidence))
    axis.hist(confidence, bins=bins, range=(0, 1), weights=share, color=MIXTURE)
    axis.yaxis.set_major_formatter(PERCENT)
    weak = float((confidence > threshold).mean())
    axis.axvline(threshold, color=MUTED, linestyle="--", linewidth=1.2)
    axis.set_title(
        f"{weak:.0%} of {unit} to the weak expert alone (c > {threshold:g})",
        fontsize=10,
        loc="left",
    )
    return figure


def gate_weights_by_class(
    weights: np.ndarray,
    labels: np.ndarray,
    *,
    class_names: Sequence[str] = (),
    max_classes: int = 40,
) -> Figure:
    """Mean gate weight of each expert per class, as a heat map.

    Args:
        weights: Gate weights, rows by experts.
        labels: Class per row; negative labels are left out.
        class_names: Name per class.
        max_classes: Show at most this many classes, the largest.

    Example:
        >>> figure = gate_weights_by_class(np.eye(2), np.array([0, 1]))
        >>> figure.axes[0].get_xlabel()
        'expert'
    """
    weights, labels = np.asarray(weights, dtype=float), np.asarray(labels)
    if weights.ndim != 2 or len(weights) != len(labels):
        raise ArgumentError(
            f"weights {weights.shape} and labels {labels.shape} do not match. Give weights as "
            "[rows, experts] and one label per row."
        )
    classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
    classes = np.sort(classes[np.argsort(-sizes, kind="stable")[:max_classes]])
    figure, axis = new_figure(height=max(2.4, 0.28 * len(classes) + 1.4))
    axis.grid(visible=False)
    if not len(classes):
        say_empty(axis)
        return figure
    table = np.stack([weights[labels == one].mean(axis=0) for one in classes])
    image = axis.imshow(table, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    names = [class_names[c] if c < len(class_names) else str(c) for c in classes.astype(int)]
    axis.set_yticks(range(len(classes)), names)
    axis.set_xticks(range(table.shape[1]))
    axis.set(xlabel="expert", ylabel="class")
    figure.colorbar(image, ax=axis, label="mean gate weight")
    return figure


def _rows(confidence: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidence = np.asarray(confidence, dtype=float).ravel()
    x = np.asarray(x, dtype=float).ravel()
    if len(confidence) != len(x):
        raise ArgumentError(
            f"confidence has {len(confidence)} rows and x has {len(x)}. Give one number per row."
        )
    return confidence, x


def _binned(
    x: np.ndarray, y: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean of x, and median and quartiles of y, in equal-width bins of x that hold enough rows."""
    low, high = float(x.min()), float(x.max())
    edges = np.linspace(low, high, bins + 1)
    which = np.clip(np.digitize(x, edges[1:-1]), 0, bins - 1)
    least = max(1, min(5, len(x) // bins))
    kept = [b for b in range(bins) if (which == b).sum() >= least]
    centres = np.array([x[which == b].mean() for b in kept])
    quartiles = np.array([np.quantile(y[which == b], (0.25, 0.5, 0.75)) for b in kept])
    quartiles = quartiles.reshape(-1, 3)
    return centres, quartiles[:, 1], quartiles[:, 0], quartiles[:, 2]
