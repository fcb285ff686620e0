"""Mixture-of-experts outside language models: one gating core, fast kernels, published models.

Subpackages load when they are first touched, so ``import moeapps`` costs next to nothing.

Example:
    >>> import moeapps
    >>> moeapps.list_models("graphs/*")[:2]
    ['graphs/gat', 'graphs/gcn']
"""

import importlib
from typing import Any

from moeapps.registry import create_model, list_models, model_info

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models", "model_info"]

_SUBPACKAGES = (
    *("data", "errors", "gating", "graphs", "kernels", "plots"),
    *("recsys", "streams", "testing", "training", "vision"),
)
_LAZY = {"load_model": "moeapps.training.export"}


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"moeapps.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'moeapps' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES, *_LAZY])
