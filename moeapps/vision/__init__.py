"""Mixtures of experts on images. Names load on first use, so importing this costs nothing."""

from moeapps.lazy import lazy_names

_NAMES: dict[str, str] = {
    "Branches": "moeapps.vision.backbones.branches",
    "CosineClassifier": "moeapps.vision.backbones.cosine",
    "LongTailModel": "moeapps.vision.longtail.base",
}

__all__ = [*_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
