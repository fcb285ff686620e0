"""Mixtures of experts on graphs. Names load on first use, so importing this costs nothing."""

from moeapps.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
