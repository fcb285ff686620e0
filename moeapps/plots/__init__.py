"""Figures. Every function takes arrays and returns a :class:`matplotlib.figure.Figure`."""

from moeapps.lazy import lazy_names

_NAMES = {
    "accuracy_by_confidence": "moeapps.plots.experts",
    "confidence_against": "moeapps.plots.gates",
    "confidence_histogram": "moeapps.plots.gates",
    "curves_by_turn": "moeapps.plots.curves",
    "disagreement": "moeapps.plots.experts",
    "expert_utilisation": "moeapps.plots.experts",
    "gate_weights_by_class": "moeapps.plots.gates",
    "reliability": "moeapps.plots.calibration",
    "training_curves": "moeapps.plots.curves",
}

__all__ = [*_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
