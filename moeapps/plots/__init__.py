"""Figures. Every function takes arrays and returns a :class:`matplotlib.figure.Figure`."""

import importlib
from typing import Any

_NAMES = {
    "accuracy_by_confidence": "moeapps.plots.experts",
    "confidence_against": "moeapps.plots.gates",
    "confidence_histogram": "moeapps.plots.gates",
    "curves_by_turn": "moeapps.plots.curves",
    "expert_utilisation": "moeapps.plots.experts",
    "gate_weights_by_class": "moeapps.plots.gates",
    "training_curves": "moeapps.plots.curves",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
