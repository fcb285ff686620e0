"""Mixtures of experts on images. Names load on first use, so importing this costs nothing."""

from moeapps.lazy import lazy_names

_NAMES: dict[str, str] = {}

__all__ = [*_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
