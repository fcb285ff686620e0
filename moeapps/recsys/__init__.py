"""Multi-gate multi-task ranking. Names load on first use, so importing this costs nothing."""

from moeapps.lazy import lazy_names

_NAMES: dict[str, str] = {
    "Dense": "moeapps.recsys.schema",
    "Categorical": "moeapps.recsys.schema",
    "MultiHot": "moeapps.recsys.schema",
    "Sequence": "moeapps.recsys.schema",
    "GroupKey": "moeapps.recsys.schema",
    "Task": "moeapps.recsys.schema",
    "FeatureSchema": "moeapps.recsys.schema",
    "Ranker": "moeapps.recsys.ranker",
    "SharedBottom": "moeapps.recsys.models.shared_bottom",
    "MMoE": "moeapps.recsys.models.mmoe",
    "OMoE": "moeapps.recsys.models.mmoe",
    "CGC": "moeapps.recsys.models.ple",
    "PLE": "moeapps.recsys.models.ple",
    "HoME": "moeapps.recsys.models.home",
    "AdaTT": "moeapps.recsys.models.adatt",
    "STEM": "moeapps.recsys.models.stem",
    "ESMM": "moeapps.recsys.models.esmm",
    "AITM": "moeapps.recsys.models.aitm",
    "SNR": "moeapps.recsys.models.snr",
    "PEPNet": "moeapps.recsys.models.pepnet",
    "APEM": "moeapps.recsys.models.apem",
    "SMES": "moeapps.recsys.models.smes",
    "Encoder": "moeapps.recsys.encoders",
    "MultiTaskRanker": "moeapps.recsys.modules",
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
