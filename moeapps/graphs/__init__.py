"""Mixtures of experts on graphs. Names load on first use, so importing this costs nothing."""

import importlib
from typing import Any

_NAMES = {
    "CSRNeighborSampler": "moeapps.graphs.sampling",
    "GINSkip": "moeapps.graphs.models.gin_skip",
    "H2GCN": "moeapps.graphs.models.h2gcn",
    "MixedCSBM": "moeapps.graphs.datasets.mixed_csbm",
    "Mowst": "moeapps.graphs.models.mowst",
    "MowstClassifier": "moeapps.graphs.modules",
    "MowstOutput": "moeapps.graphs.models.mowst",
    "NodeClassifier": "moeapps.graphs.modules",
    "NodeData": "moeapps.graphs.datamodules",
    "card": "moeapps.graphs.datasets",
    "fit": "moeapps.graphs.fitting",
    "gat": "moeapps.graphs.models.experts",
    "gcn": "moeapps.graphs.models.experts",
    "gin": "moeapps.graphs.models.experts",
    "graphsage": "moeapps.graphs.models.experts",
    "list_datasets": "moeapps.graphs.datasets",
    "load": "moeapps.graphs.datasets",
    "mixed_csbm": "moeapps.graphs.datasets.mixed_csbm",
    "mlp": "moeapps.graphs.models.experts",
    "mowst": "moeapps.graphs.models.mowst",
    "propagate": "moeapps.graphs.propagation",
    "routed_predict": "moeapps.graphs.routed",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
