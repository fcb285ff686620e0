"""One look for every figure: colours that colour-blind readers can tell apart, quiet axes."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Okabe and Ito's palette, strongest contrasts first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WEAK, STRONG, MIXTURE = COLOURS[1], COLOURS[0], COLOURS[2]
SEQUENTIAL = "cividis"
MUTED = "#6b7280"

PERCENT = PercentFormatter(xmax=1.0, decimals=0)


def new_figure(width: float = 6.4, height: float = 4.0, **subplots: Any) -> tuple[Figure, Any]:
    """A figure and its axes, outside of pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(**subplots)
    for axis in axes.flat if hasattr(axes, "flat") else [axes]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, color="#e5e7eb", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def say_empty(axis: Any, message: str = "no data") -> None:
    """Write in an empty plot why it is empty."""
    axis.text(0.5, 0.5, message, transform=axis.transAxes, ha="center", va="center", color=MUTED)
