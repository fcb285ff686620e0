"""Checks that any gate, mixture layer or registered model can be held to; needs no test framework.

Each raises ``AssertionError`` with the property that does not hold. Names load on first use.
"""

from moeapps.lazy import lazy_names

_NAMES = {
    "MODEL_CHECKS": "moeapps.testing.models",
    "STREAM_CHECKS": "moeapps.testing.streams",
    "check_gate": "moeapps.testing.layers",
    "check_model": "moeapps.testing.models",
    "check_moe_layer": "moeapps.testing.layers",
    "check_stream_model": "moeapps.testing.streams",
    "example_inputs": "moeapps.testing.inputs",
}

__all__ = [*_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
