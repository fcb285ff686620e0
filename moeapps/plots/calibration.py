"""Whether a network is as often right as it says."""

import numpy as np
from matplotlib.figure import Figure

from moeapps.plots.style import COLOURS, MUTED, PERCENT, new_figure, say_empty


def reliability(bins: np.ndarray) -> Figure:
    """Accuracy against confidence.

    Args:
        bins: Confidence, accuracy and share of the images, ``[bins, 3]``; NaN is left out.

    Example:
        >>> figure = reliability(np.array([[0.9, 0.8, 1.0]]))
        >>> figure.axes[0].get_xlabel()
        'confidence (largest probability)'
    """
    figure, axis = new_figure(width=5.2, height=4.6)
    axis.set(xlabel="confidence (largest probability)", ylabel="accuracy")
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axis.xaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_formatter(PERCENT)
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
    seen = bins[~np.isnan(bins).any(1)]
    if not len(seen):
        say_empty(axis)
        return figure
    axis.plot(seen[:, 0], seen[:, 1], color=COLOURS[0], linewidth=1.5)
    axis.scatter(seen[:, 0], seen[:, 1], s=12 + 600 * seen[:, 2], color=COLOURS[0], alpha=0.5)
    error = float((np.abs(seen[:, 0] - seen[:, 1]) * seen[:, 2]).sum())
    axis.set_title(f"expected calibration error {error:.1%}", fontsize=9, color=MUTED, loc="right")
    return figure
