"""Multi-gate multi-task ranking. Names load on first use, so importing this costs nothing."""

from moeapps.lazy import lazy_names

_NAMES: dict[str, str] = {
    "Encoder": "moeapps.recsys.encoders",
    "RankingData": "moeapps.recsys.datamodules",
    "RankingFiles": "moeapps.recsys.datamodules",
    "PackedLoader": "moeapps.recsys.loaders",
    "StreamingLoader": "moeapps.recsys.loaders",
    "Blocks": "moeapps.recsys.files",
    "CsvFormat": "moeapps.recsys.files",
    "read_columns": "moeapps.recsys.files",
    "card": "moeapps.recsys.datasets",
    "list_datasets": "moeapps.recsys.datasets",
    "load": "moeapps.recsys.datasets",
    "make_fixture": "moeapps.recsys.datasets",
    "short_video_log": "moeapps.recsys.datasets.short_video",
    "oracle_scores": "moeapps.recsys.datasets.short_video",
    "two_task_regression": "moeapps.recsys.datasets.two_task_regression",
    "Tables": "moeapps.recsys.datasets.tables",
}

__all__ = [*_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
