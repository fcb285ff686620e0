"""Figures of accuracy under attack."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from moeapps.plots import training_curves
from moeapps.plots.style import COLOURS, PERCENT, new_figure
from moeapps.vision.robust.evaluation import RobustReport

CAPTIONS = {
    "attacks": (
        "Share of the test images that stay right, clean and under each attack. The worst case "
        "counts an image only if no attack at all changed its answer: that is what is robust."
    ),
    "curves_robust": "Validation accuracy over the epochs, clean and under a short attack.",
}


def figures(
    results: Mapping[str, np.ndarray], metrics: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """Every figure of attacks for which the run has data; :data:`CAPTIONS` says what each shows.

    Args:
        results: Arrays of ``results.npz``; may be empty, as in a run that was never tested.
        metrics: Columns of ``metrics.csv``.
    """
    drawn = {}
    report = RobustReport.from_arrays(results)
    if report.correct:
        drawn["attacks"] = accuracy_under_attack({"network": report})
    curves = {"clean": "val/accuracy", "under attack": "val/robust_accuracy"}
    if "val/robust_accuracy" in metrics:
        drawn["curves_robust"] = training_curves(
            np.asarray(metrics["epoch"], float),
            {title: metrics[name] for title, name in curves.items()},
            ylabel="validation accuracy",
            percent=True,
        )
    return drawn


def accuracy_under_attack(reports: Mapping[str, RobustReport]) -> Figure:
    """Accuracy of some networks, clean, under each attack, and in the worst case of each image.

    Args:
        reports: By name of the network. An attack that a network did not face has no bar.

    Example:
        >>> import torch
        >>> right = torch.tensor([True, False])
        >>> figure = accuracy_under_attack({"net": RobustReport({"clean": right}, {})})
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['clean', 'worst case']
    """
    names = list(dict.fromkeys(name for report in reports.values() for name in report.correct))
    figure, axis = new_figure(1.6 + 0.9 * (len(names) + 1))
    width = 0.8 / max(1, len(reports))
    for number, (title, report) in enumerate(reports.items()):
        offset = (number - (len(reports) - 1) / 2) * width
        there = [(i, report.accuracy(n)) for i, n in enumerate(names) if n in report.correct]
        places, heights = zip(*there, (len(names), report.worst()), strict=True)
        colour = COLOURS[number % len(COLOURS)]
        axis.bar([p + offset for p in places], heights, width, color=colour, label=title)
    axis.set_xticks(range(len(names) + 1), [*names, "worst case"], rotation=30)
    axis.set_ylabel("images classified correctly")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PERCENT)
    axis.legend(frameon=False)
    return figure
