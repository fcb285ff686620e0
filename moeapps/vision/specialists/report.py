"""How a student compares with its teachers, vertical by vertical."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moeapps.plots import training_curves
from moeapps.plots.style import COLOURS, MUTED, PERCENT, new_figure
from moeapps.training.report import Section, Table

Arrays = Mapping[str, NDArray[np.generic]]
_PREFIX = "vertical_precision/"
_NAMED = 40  # verticals; more numbers hide each other

CAPTIONS = {
    "student_teachers": (
        "Average precision of the student against that of the vertical's own teacher, one dot per "
        "vertical, both among the test images of its classes. Above the line the student is better."
    ),
    "curves_precision": "Validation over the epochs, mean over the verticals.",
}


def figures(results: Arrays, metrics: Arrays) -> dict[str, Figure]:
    """Student against teachers if the run had teachers, and what validation said.

    Args:
        results: Arrays of ``results.npz``; may be empty, as in a run that was never tested.
        metrics: Columns of ``metrics.csv``.

    Example:
        >>> figures({}, {})
        {}
    """
    drawn = {}
    if "val/average_precision" in metrics:
        drawn["curves_precision"] = training_curves(
            np.asarray(metrics["epoch"], float),
            {"average precision": metrics["val/average_precision"]},
            ylabel="validation average precision",
            percent=True,
        )
    precision = _precision(results)
    if "teachers" in precision:
        drawn["student_teachers"] = student_figure(
            precision["student"], precision["teachers"], [*map(str, results["vertical_names"])]
        )
    return drawn


def student_figure(
    student: NDArray[np.float64], teachers: NDArray[np.float64], names: Sequence[str]
) -> Figure:
    """Average precision of a student against its teachers.

    Args:
        student: Of each vertical, ``[M]``; NaN for one without test images.
        teachers: Of each vertical's own teacher, ``[M]``.
        names: Of the verticals, written beside the dots if they are few.

    Example:
        >>> figure = student_figure(np.array([0.5, 0.4]), np.array([0.4, 0.6]), ["birds", "cars"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['birds', 'cars']
    """
    figure, axis = new_figure(width=5.2, height=4.6)
    axis.scatter(teachers, student, color=COLOURS[0], s=36, alpha=0.7, linewidths=0)
    if len(names) <= _NAMED:
        for name, *place in zip(names, teachers, student, strict=True):
            axis.annotate(name, place, (4, 4), textcoords="offset points", fontsize=8)
    both = np.concatenate([student, teachers])
    ends = [np.nanmin(both) - 0.02, np.nanmax(both) + 0.02]
    axis.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--")
    axis.set(xlabel="average precision of the teacher", ylabel="average precision of the student")
    axis.xaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_formatter(PERCENT)
    return figure


def sections(results: Arrays) -> list[Section]:
    """Average precision of each vertical, of the student and its teachers if there are any.

    Args:
        results: Arrays of ``results.npz``.

    Example:
        >>> sections({})
        []
    """
    precision = _precision(results)
    if not precision:
        return []
    text = "Each vertical is ranked among the test images of its own classes."
    if "teachers" in precision:
        gain = precision["student"] - precision["teachers"]
        text += (
            f" The student is {100 * np.nanmean(gain):+.1f} points against the vertical's own "
            f"teacher in the mean, ahead in {int((gain > 0).sum())} of {len(gain)} verticals."
        )
    rows = tuple(
        (f"vertical {name}", str(size), *("no image" if np.isnan(v) else f"{v:.3f}" for v in of))
        for name, size, *of in zip(
            results["vertical_names"], results["vertical_sizes"], *precision.values(), strict=True
        )
    )
    table = Table(("", "classes", *precision), rows)
    return [Section("Average precision by vertical", text=text, table=table)]


def _precision(results: Arrays) -> dict[str, NDArray[np.float64]]:
    """By who answers."""
    return {
        name.removeprefix(_PREFIX): np.asarray(values, float)
        for name, values in results.items()
        if name.startswith(_PREFIX)
    }
