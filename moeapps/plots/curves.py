"""Logged numbers over the epochs of a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moeapps.plots.style import COLOURS, MUTED, PERCENT, new_figure, say_empty

_SHADES = {"pretrain": "#e0e7ff", "weak": "#ffedd5", "strong": "#e0f2fe", "other": "#f3f4f6"}


def training_curves(
    epochs: np.ndarray, series: Mapping[str, np.ndarray], *, ylabel: str, percent: bool = False
) -> Figure:
    """Lines over epochs; NaN values are skipped, so metrics logged at different times share a plot.

    Args:
        epochs: Epoch per row.
        series: Values per row for each name.
        ylabel: What is drawn, with its unit.
        percent: Whether values in [0, 1] are written as per cent.

    Example:
        >>> figure = training_curves(np.arange(2), {"loss": np.array([2.0, 1.0])}, ylabel="loss")
        >>> len(figure.axes[0].lines)
        1
    """
    figure, axis = new_figure()
    _draw(axis, epochs, series, percent=percent)
    axis.set(xlabel="epoch", ylabel=ylabel)
    return figure


def curves_by_turn(
    epochs: np.ndarray,
    series: Mapping[str, np.ndarray],
    turns: Sequence[tuple[str, int, int, bool]],
    *,
    ylabel: str,
    percent: bool = False,
) -> Figure:
    """Lines over epochs on a background that shows whose turn it was.

    Args:
        epochs: Epoch per row.
        series: Values per row for each name.
        turns: Name, first epoch, number of epochs, and whether the turn was kept.
        ylabel: What is drawn, with its unit.
        percent: Whether values in [0, 1] are written as per cent.

    Example:
        >>> turns = [("weak:1", 0, 1, True), ("strong:1", 1, 1, False)]
        >>> acc = {"acc": np.array([0.5, 0.6])}
        >>> figure = curves_by_turn(np.arange(2), acc, turns, ylabel="accuracy")
        >>> [text.get_text() for text in figure.axes[0].texts][-1]
        'strong:1 (undone)'
    """
    figure, axis = new_figure(width=7.6, height=4.4)
    total = sum(length for _, _, length, _ in turns)
    for name, start, length, kept in turns:
        if length < 1:
            continue
        kind = "pretrain" if name.startswith("pretrain") else name.partition(":")[0]
        axis.axvspan(start, start + length, color=_SHADES.get(kind, _SHADES["other"]), linewidth=0)
        axis.axvline(start, color="white", linewidth=1.2)
        if length >= 0.018 * total:
            label = name.replace("_", " ") + ("" if kept else " (undone)")
            axis.text(
                start + length / 2, 0.03, label, rotation=90, fontsize=8, color=MUTED,
                ha="center", va="bottom", transform=axis.get_xaxis_transform(),
            )  # fmt: skip
    axis.grid(visible=False, axis="x")
    _draw(axis, epochs, series, percent=percent)
    axis.set(xlabel="epoch (all turns)", ylabel=ylabel)
    if total:
        axis.set_xlim(0, total)
    return figure


def _draw(
    axis: Any, epochs: np.ndarray, series: Mapping[str, np.ndarray], *, percent: bool
) -> None:
    epochs = np.asarray(epochs, dtype=float)
    drawn = 0
    for index, (name, values) in enumerate(series.items()):
        values = np.asarray(values, dtype=float)
        keep = np.isfinite(values) & np.isfinite(epochs)
        if not keep.any():
            continue
        drawn += 1
        axis.plot(
            *_broken(epochs[keep], values[keep]), color=COLOURS[index % len(COLOURS)],
            linewidth=1.5, label=name, marker="o" if keep.sum() == 1 else None,
        )  # fmt: skip
    if not drawn:
        say_empty(axis)
        return
    if percent:
        axis.yaxis.set_major_formatter(PERCENT)
    if drawn > 1:
        axis.figure.legend(loc="outside upper center", ncols=min(drawn, 4), frameon=False)


def _broken(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line with a break where nothing was logged for much longer than usual."""
    steps = np.diff(x)
    moving = steps[steps > 0]
    if not len(moving):
        return x, y
    gaps = np.flatnonzero(steps > 3 * np.median(moving)) + 1
    return np.insert(x, gaps, np.nan), np.insert(y, gaps, np.nan)
