"""Figures of vision runs, by what their results hold."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from moeapps.vision.counting import figures as counting
from moeapps.vision.longtail import figures as longtail
from moeapps.vision.restoration import figures as restoration
from moeapps.vision.robust import figures as robust
from moeapps.vision.specialists import report as specialists

PARTS = (robust, longtail, specialists, restoration, counting)
CAPTIONS = {name: text for part in PARTS for name, text in part.CAPTIONS.items()}


def figures(
    results: Mapping[str, np.ndarray], metrics: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """Every figure for which the run has data, by name; :data:`CAPTIONS` says what each shows.

    Args:
        results: Arrays of ``results.npz``; may be empty, as in a run that was never tested.
        metrics: Columns of ``metrics.csv``.
    """
    return {k: v for part in PARTS for k, v in part.figures(results, metrics).items()}
