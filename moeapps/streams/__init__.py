"""Mixtures of experts on data streams. Names load on first use, so importing this costs nothing."""

import importlib
from typing import Any

_NAMES = {
    "DriftMoE": "moeapps.streams.driftmoe",
    "HoeffdingTree": "moeapps.streams.hoeffding_tree",
    "RoutedBagging": "moeapps.streams.routed_bagging",
    "TAME": "moeapps.streams.tame",
    "card": "moeapps.streams.datasets",
    "list_datasets": "moeapps.streams.datasets",
    "load": "moeapps.streams.datasets",
    "load_csv": "moeapps.streams.datasets",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
