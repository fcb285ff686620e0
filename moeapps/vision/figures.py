"""Figures of vision runs, by what their results hold."""

from moeapps.vision.longtail.figures import CAPTIONS, figures

__all__ = ["CAPTIONS", "figures"]
