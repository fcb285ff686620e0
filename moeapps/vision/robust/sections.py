"""What attacks leave of a network's accuracy, as a table and in words."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moeapps.training.report import Section, Table
from moeapps.vision.robust.evaluation import RobustReport
from moeapps.vision.robust.suites import ADAPTIVE


def sections(results: Mapping[str, NDArray[np.generic]]) -> list[Section]:
    """A section if the run was attacked.

    Args:
        results: Arrays of ``results.npz``.

    Example:
        >>> right = {"clean": [True, True], "pgd": [True, True], "forced": [True, False]}
        >>> arrays = {f"attack_correct/{name}": np.array(rows) for name, rows in right.items()}
        >>> sections(arrays)[0].table.rows[-1]
        ('worst case of each image', '50.0%', '-')
    """
    report = RobustReport.from_arrays(results)
    if not report.correct:
        return []
    table = Table(("attack", "accuracy", "routes changed"), report.rows)
    return [Section("Accuracy under attack", text=_reading(report), table=table)]


def _reading(report: RobustReport) -> str:
    fixed = report.worst([name for name in report.correct if name not in ADAPTIVE])
    worst = report.worst()
    text = (
        f"Of the test images {report.accuracy():.1%} are classified correctly, {fixed:.1%} under "
        f"every attack that takes the network as it is, {worst:.1%} under all. Only the last "
        "number is robustness."
    )
    if not report.flipped:
        return text + " The network routes nothing, so attacks on a router are further starts."
    name = max(report.flipped, key=report.flips)
    return text + (
        f" The router hid {100 * (fixed - worst):.1f} points from attacks that do not follow it; "
        f"the attack {name} sends {report.flips(name):.1%} of the images to another expert."
    )
