"""Parts of a vision run's report besides the figures, by what its results hold."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moeapps.training.report import Section
from moeapps.vision.counting import sections as counting
from moeapps.vision.longtail import sections as longtail
from moeapps.vision.restoration import sections as restoration
from moeapps.vision.robust import sections as robust
from moeapps.vision.specialists import report as specialists


def sections(results: Mapping[str, NDArray[np.generic]]) -> list[Section]:
    """The sections for which the run has data.

    Args:
        results: Arrays of ``results.npz``.
    """
    parts = (robust, longtail, specialists, restoration, counting)
    return [section for part in parts for section in part.sections(results)]
