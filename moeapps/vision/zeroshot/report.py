"""What methods for seen and unseen classes are worth on a test set: a table and their curves."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from moeapps.plots.style import COLOURS, PERCENT, new_figure
from moeapps.training.report import Picture, Report, Section, Table
from moeapps.vision.zeroshot.experts import Array
from moeapps.vision.zeroshot.metrics import Scores
from moeapps.vision.zeroshot.two_phases import TwoPhases

_COLUMNS = {
    "seen": "seen classes",
    "unseen": "unseen classes",
    "harmonic": "harmonic mean",
    "ausuc": "AUSUC",
    "auroc": "gate AUROC",
    "fpr95": "gate FPR95",
}
_CAPTION = (
    "Accuracy on unseen against seen classes while each method moves from answering seen classes "
    "only to unseen ones only; the area under a curve is its AUSUC. The dot is where the method "
    "stands: a choice made on held-out classes, so it need not be the best point of its curve."
)
_TEXT = (
    "Accuracy is the mean over the classes of a kind, with answers among all classes. The harmonic "
    "mean is high only if both are. The gate tells images of seen classes from others; FPR95 is "
    "the share of the unseen images that it takes for seen where it accepts 95 % of the seen ones."
)


def zero_shot_report(
    models: Mapping[str, TwoPhases], features: Array, labels: Array, *, dataset: str = "own images"
) -> Report:
    """Compare fitted methods on test images of both kinds; write it with ``training.report.write``.

    Args:
        models: Fitted :class:`~moeapps.vision.zeroshot.cosmo.COSMO` or
            :class:`~moeapps.vision.zeroshot.calibrated_stacking.CalibratedStacking` by name.
        features: Of the test images, ``[N, D]``.
        labels: Rows of the attributes, ``[N]``.
        dataset: What the title calls the images.

    Raises:
        ArgumentError: A model is not fitted, or images and labels do not fit it.
    """
    numbers = {name: model.report(features, labels) for name, model in models.items()}
    table = Table(
        ("method", *_COLUMNS.values()),
        tuple(
            (name, *(f"{of[key]:.3f}" if key in of else "-" for key in _COLUMNS))
            for name, of in numbers.items()
        ),
    )
    figure = curve_figure(
        {name: model.curve(features, labels) for name, model in models.items()},
        {name: Scores(of["seen"], of["unseen"]) for name, of in numbers.items()},
    )
    return Report(
        f"Seen and unseen classes of {dataset}",
        f"{len(labels):,} test images",
        sections=[
            Section("Accuracy", text=_TEXT, table=table),
            Section("Figures", pictures=(Picture("seen_unseen", figure, _CAPTION),)),
        ],
    )


def curve_figure(curves: Mapping[str, tuple[Array, Array]], points: Mapping[str, Scores]) -> Figure:
    """Unseen against seen accuracy of each method, and where each stands.

    Args:
        curves: Seen and unseen accuracies by name.
        points: Both accuracies of the chosen setting by name.

    Example:
        >>> import numpy as np
        >>> line = np.array([0.0, 0.5]), np.array([0.4, 0.0])
        >>> figure = curve_figure({"COSMO": line}, {"COSMO": Scores(0.3, 0.2)})
        >>> figure.axes[0].get_xlabel()
        'accuracy on seen classes'
    """
    figure, axis = new_figure(width=5.6, height=4.6)
    for number, (name, (seen, unseen)) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        order = seen.argsort(kind="stable")
        axis.plot(seen[order], unseen[order], color=colour, linewidth=1.5, label=name)
        axis.plot(points[name].seen, points[name].unseen, "o", color=colour, markersize=7)
    axis.set(xlabel="accuracy on seen classes", ylabel="accuracy on unseen classes")
    axis.set(xlim=(0, None), ylim=(0, None))
    axis.xaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_formatter(PERCENT)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure
