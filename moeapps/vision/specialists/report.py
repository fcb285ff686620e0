"""How a student compares with its teachers, vertical by vertical."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moeapps.plots.style import COLOURS, MUTED, PERCENT, new_figure
from moeapps.training.report import Section, Table

Arrays = Mapping[str, NDArray[np.generic]]
_PREFIX = "vertical_precision/"
_NAMED = 40  # verticals; more numbers hide each other

CAPTIONS = {
    "student_teachers": (
        "Average precision of the student against that of the vertical's own teacher, one dot per "
        "vertical, both among the test images of its classes. Above the line the student is better."
    )
}


def figures(results: Arrays, metrics: Arrays) -> dict[str, Figure]:
    """Student against teachers, if the run had teachers.

    Args:
        results: Arrays of ``results.npz``; may be empty, as in a run that was never tested.
        metrics: Columns of ``metrics.csv``.

    Example:
        >>> figures({}, {})
        {}
    """
    precision = _precision(results)
    if "teachers" not in precision:
        return {}
    figure, axis = new_figure(width=5.2, height=4.6)
    x, y = precision["teachers"], precision["student"]
    axis.scatter(x, y, color=COLOURS[0], s=36, alpha=0.7, linewidths=0)
    if len(x) <= _NAMED:
        for name, *place in zip(results["vertical_names"], x, y, strict=True):
            axis.annotate(str(name), place, (4, 4), textcoords="offset points", fontsize=8)
    both = np.concatenate([x, y])
    ends = [np.nanmin(both) - 0.02, np.nanmax(both) + 0.02]
    axis.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--")
    axis.set(xlabel="average precision of the teacher", ylabel="average precision of the student")
    axis.xaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_formatter(PERCENT)
    return {"student_teachers": figure}


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
