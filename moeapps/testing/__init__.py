"""Checks that any gate, mixture layer or registered model can be held to; needs no test framework.

Each raises ``AssertionError`` with the property that does not hold. Names load on first use.
"""

import importlib
from typing import Any

_NAMES = {
    "MODEL_CHECKS": "moeapps.testing.models",
    "check_gate": "moeapps.testing.layers",
    "check_model": "moeapps.testing.models",
    "check_moe_layer": "moeapps.testing.layers",
    "example_inputs": "moeapps.testing.inputs",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
