"""Figures of a test-then-train run. Functions take arrays and return a Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from moeapps.plots.style import COLOURS, MUTED, PERCENT, SEQUENTIAL, new_figure, say_empty

MAX_POINTS = 150  # of a line; more windows are averaged

CAPTIONS = {
    "accuracy": "Accuracy per window, mean of the seeds. Dashed lines are known changes of the "
    "stream (a band: a gradual one); ticks below are the changes that a model saw, first seed.",
    "living": "Experts that are alive at the end of each window.",
    "usage": "Share of the answers that each expert gave, over time. A change of the pattern shows "
    "that the gate turned to other experts.",
    "recovery": "Instances from each true change until the windowed accuracy is back within one "
    "point of the five windows before it; a model that was low before has less to recover. A dot "
    "is a seed; a hollow mark counts the seeds that were not back before the next change.",
}
_THOUSANDS = FuncFormatter(lambda value, _: f"{value / 1000:g} k" if value else "0")


def windowed_accuracy(
    ends: np.ndarray,
    accuracy: Mapping[str, np.ndarray],
    *,
    drifts: Sequence[int] = (),
    drift_width: float = 0.0,
    detected: Mapping[str, Sequence[int]] | None = None,
) -> Figure:
    """Accuracy of every model over the stream, with true and detected changes.

    Args:
        ends: Instance after the last of each window.
        accuracy: Name -> value per window, in [0, 1]; NaN where a model has not got yet.
        drifts: True changes.
        drift_width: Instances that a true change takes.
        detected: Name -> instances at which the model saw a change.

    Example:
        >>> figure = windowed_accuracy(np.array([10, 20]), {"a": np.array([0.5, 0.6])}, drifts=[10])
        >>> figure.axes[0].get_ylabel()
        'accuracy'
    """
    figure, axis = new_figure(width=7.6, height=4.4)
    axis.set(xlabel="instances", ylabel="accuracy")
    axis.xaxis.set_major_formatter(_THOUSANDS)
    axis.yaxis.set_major_formatter(PERCENT)
    if not len(ends) or not accuracy:
        say_empty(axis)
        return figure
    mark_drifts(axis, drifts, drift_width)
    x, keep = _thinned(ends)
    for index, (name, values) in enumerate(accuracy.items()):
        y = _averaged(values, keep)
        # A single window has no line to see.
        marker = "o" if np.isfinite(y).sum() == 1 else None
        axis.plot(x, y, color=_colour(index), linewidth=1.5, label=name, marker=marker)
    axis.set_xlim(0, ends[-1])
    seen = [
        (i, name) for i, name in enumerate(accuracy) if detected and len(detected.get(name, ()))
    ]
    low, high = axis.get_ylim()
    step = 0.04 * (high - low)
    for row, (index, name) in enumerate(seen):
        assert detected is not None
        places = np.asarray(detected[name])
        height = np.full(len(places), low - (row + 0.6) * step)
        axis.plot(places, height, "|", color=_colour(index), markersize=7, clip_on=False)
    axis.set_ylim(low - (len(seen) + 0.4) * step if seen else low, high)
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return figure


def living_experts(
    ends: np.ndarray,
    living: Mapping[str, np.ndarray],
    *,
    drifts: Sequence[int] = (),
    drift_width: float = 0.0,
) -> Figure:
    """Number of living experts of every model over the stream.

    Args:
        ends: Instance after the last of each window.
        living: Name -> number per window.
        drifts: True changes.
        drift_width: Instances that a true change takes.

    Example:
        >>> living_experts(np.array([10]), {"a": np.array([3.0])}).axes[0].get_ylabel()
        'living experts'
    """
    figure, axis = new_figure(width=7.6, height=3.2)
    axis.set(xlabel="instances", ylabel="living experts")
    axis.xaxis.set_major_formatter(_THOUSANDS)
    if not len(ends) or not living:
        say_empty(axis)
        return figure
    mark_drifts(axis, drifts, drift_width)
    for index, (name, values) in enumerate(living.items()):
        axis.step(ends, values, where="post", color=_colour(index), linewidth=1.5, label=name)
    axis.set_xlim(0, ends[-1])
    axis.set_ylim(bottom=0)
    axis.margins(y=0.1)
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return figure


def expert_usage(
    ends: np.ndarray, usage: np.ndarray, *, drifts: Sequence[int] = (), name: str = ""
) -> Figure:
    """Which expert answers when: share of the answers per window, as a heat map.

    Args:
        ends: Instance after the last of each window.
        usage: Answers per window and expert ``[W, K]``.
        drifts: True changes.
        name: Of the model.

    Example:
        >>> figure = expert_usage(np.array([10, 20]), np.array([[10, 0], [5, 5]]))
        >>> figure.axes[0].get_ylabel()
        'expert'
    """
    experts = usage.shape[1]
    figure, axis = new_figure(width=7.6, height=float(np.clip(0.26 * experts + 1.6, 2.4, 6.0)))
    axis.grid(visible=False)
    axis.set(xlabel="instances", ylabel="expert")
    axis.set_title(name, fontsize=10, loc="left")
    if not usage.size:
        say_empty(axis)
        return figure
    x, keep = _thinned(ends)
    rows = np.stack([_averaged(column, keep) for column in usage.T])
    with np.errstate(invalid="ignore"):
        share = rows / rows.sum(axis=0)
    edges = np.concatenate([[0], x])
    # At the start one expert often has everything; it must not take all the colours.
    top = float(np.nanquantile(share, 0.98))
    image = axis.pcolormesh(
        edges, np.arange(experts + 1) - 0.5, share, cmap=SEQUENTIAL, vmin=0, vmax=top or 1.0
    )
    axis.set_yticks(range(0, experts, 1 if experts <= 20 else experts // 10))
    axis.xaxis.set_major_formatter(_THOUSANDS)
    for drift in drifts:
        axis.axvline(drift, color="white", linestyle="--", linewidth=1.2)
    above = "max" if np.nanmax(share) > top else "neither"
    bar = figure.colorbar(image, ax=axis, label="share of answers", extend=above)
    bar.ax.yaxis.set_major_formatter(PERCENT)
    return figure


def recovery_times(drifts: Sequence[int], times: Mapping[str, np.ndarray]) -> Figure:
    """Instances that every model needs after each change.

    Args:
        drifts: True changes.
        times: Name -> ``[seeds, changes]`` instances; NaN = not back before the next change.

    Example:
        >>> figure = recovery_times([100], {"a": np.array([[50.0], [70.0]])})
        >>> figure.axes[0].get_ylabel()
        'instances until recovered'
    """
    figure, axis = new_figure(width=7.6, height=3.4)
    axis.set(xlabel="true change, at instance", ylabel="instances until recovered")
    axis.yaxis.set_major_formatter(_THOUSANDS)
    if not len(drifts) or not times:
        say_empty(axis, "no known change")
        return figure
    axis.grid(visible=False, axis="x")
    places = np.arange(len(drifts))
    width = 0.8 / len(times)
    top = max([float(np.nanmax(t)) for t in times.values() if np.isfinite(t).any()], default=1.0)
    for index, (name, values) in enumerate(times.items()):
        x = places - 0.4 + (index + 0.5) * width
        colour = _colour(index)
        counted = np.isfinite(values).any(axis=0)
        means = np.full(len(drifts), np.nan)
        means[counted] = np.nanmean(values[:, counted], axis=0)
        axis.bar(x, means, width=0.9 * width, color=colour, alpha=0.35, linewidth=0, label=name)
        for row in values:
            axis.plot(x, row, "o", color=colour, markersize=4)
        missed = np.isnan(values).sum(axis=0)
        for place, count in zip(x, missed, strict=True):
            if count:
                axis.plot(place, 1.12 * top, "o", mfc="none", mec=colour, markersize=6)
                axis.text(place, 1.17 * top, f"{count}", ha="center", fontsize=7, color=MUTED)
    axis.set_ylim(0, 1.3 * top)
    axis.set_xticks(places, [f"{drift:,}" for drift in drifts])
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return figure


def mark_drifts(axis: Any, drifts: Sequence[int], width: float) -> None:
    """True changes: a dashed line each, a band where a change takes long."""
    for drift in drifts:
        if width > 0:
            axis.axvspan(drift - width / 2, drift + width / 2, color="#eef0f3", linewidth=0)
        axis.axvline(drift, color=MUTED, linestyle="--", linewidth=1.0)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _thinned(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of groups of windows, and the first window of each group."""
    size = -(-len(ends) // MAX_POINTS)
    first = np.arange(0, len(ends), size)
    return ends[np.minimum(first + size, len(ends)) - 1], first


def _averaged(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Means over groups of windows."""
    values = np.asarray(values, float)
    sizes = np.diff(np.append(first, len(values)))
    return np.add.reduceat(values, first) / sizes
