"""Mixtures of experts on data streams. Names load on first use, so importing this costs nothing."""

from moeapps.lazy import lazy_names

_NAMES = {
    "DriftMoE": "moeapps.streams.driftmoe",
    "Evaluation": "moeapps.streams.evaluation",
    "HoeffdingTree": "moeapps.streams.hoeffding_tree",
    "KafkaSource": "moeapps.streams.kafka",
    "RoutedBagging": "moeapps.streams.routed_bagging",
    "TAME": "moeapps.streams.tame",
    "TwoStageDriftMoE": "moeapps.streams.two_stage",
    "card": "moeapps.streams.datasets",
    "kafka_source": "moeapps.streams.kafka",
    "kfold_prequential": "moeapps.streams.prequential_folds",
    "list_datasets": "moeapps.streams.datasets",
    "load": "moeapps.streams.datasets",
    "load_csv": "moeapps.streams.datasets",
    "to_capymoa": "moeapps.streams.capymoa_adapter",
}

__all__ = [*_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
