"""Multi-gate multi-task ranking. Names load on first use, so importing this costs nothing."""

import importlib
from typing import Any

_NAMES: dict[str, str] = {}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
