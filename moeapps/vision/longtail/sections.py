"""Parts of a long-tail run's report besides the figures."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moeapps.training.report import Section, Table

_FOUND = {"failure": "wrong answers", "tail": "images of the rarest third of the classes"}


def sections(results: Mapping[str, NDArray[np.generic]]) -> list[Section]:
    """The sections for which the run has data: experts, the hardest classes, what doubt is worth.

    Args:
        results: Arrays of ``results.npz``.
    """
    if "group_accuracy" not in results:
        return []
    rows, names = np.asarray(results["group_accuracy"], float), results["group_names"]
    whole = np.array([_mean(row) for row in np.asarray(results["class_accuracy"], float)])
    experts = len(rows) - 1
    who = ["mixture", *(f"expert {k}" for k in range(1, experts + 1))] if experts else ["network"]
    table = Table(
        ("", "all classes", *map(str, names)),
        tuple(
            (name, _percent(all_of), *map(_percent, row))
            for name, all_of, row in zip(who, whole, rows, strict=True)
        ),
    )
    text = _reading(rows, whole) if experts else ""
    found = [Section("Accuracy by class frequency", text=text, table=table), _hardest(results)]
    return [*found, _doubt(results)] if "doubt" in results else found


def _reading(rows: NDArray[np.float64], whole: NDArray[np.float64]) -> str:
    """What the mixture gains, in numbers."""
    best = int(np.nanargmax(whole[1:])) + 1
    gain = 100 * (whole[0] - whole[best])
    text = (
        f"The mixture is {gain:+.1f} points against its best expert ({best}), each class weighing "
        "the same."
    )
    few = rows[:, -1]
    if not np.isnan(few).any():
        text += (
            f" On classes with few images the experts range from {few[1:].min():.1%} to "
            f"{few[1:].max():.1%}, the mixture reaches {few[0]:.1%}."
        )
    return text


def _hardest(results: Mapping[str, NDArray[np.generic]], most: int = 10) -> Section:
    accuracy = np.asarray(results["class_accuracy"], float)[0]
    counts, names = np.asarray(results["class_counts"]), results["class_names"]
    order = [j for j in np.argsort(accuracy, kind="stable") if not np.isnan(accuracy[j])][:most]
    rows = tuple((str(names[j]), f"{counts[j]:,}", _percent(accuracy[j])) for j in order)
    return Section(
        "Hardest classes", table=Table(("class", "training images", "test accuracy, %"), rows)
    )


def _doubt(results: Mapping[str, NDArray[np.generic]]) -> Section:
    rows = tuple(
        (_FOUND.get(kind, f"images of {kind.removeprefix('foreign/')}, none of the classes"),
         *("not defined" if np.isnan(value) else f"{value:.3f}" for value in values))
        for kind, values in zip(map(str, results["doubt_of"]), results["doubt"], strict=True)
    )  # fmt: skip
    text = (
        "AUROC: how often doubt ranks such an image above another one; 0.5 is chance. FPR95: share "
        "of the other images that must be looked at as well to find 95 % of them. Wrong answers "
        "are an exception, as in the literature: their FPR95 is the share of the wrong answers "
        "that pass when 95 % of the right ones do."
    )
    return Section(
        "What doubt finds", text=text, table=Table(("doubt finds", "AUROC", "FPR95"), rows)
    )


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _percent(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{100 * value:.1f}"
