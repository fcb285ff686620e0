"""Strategies that turn the losses of several tasks into one step, by name.

Importing this costs nothing; a strategy's module loads when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from moeapps.errors import ArgumentError, UnknownNameError

if TYPE_CHECKING:
    from moeapps.training.balancing.base import Balancing

BALANCINGS = {
    "equal": "Equal",
    "static": "Static",
    "uncertainty": "Uncertainty",
    "dwa": "DWA",
    "famo": "FAMO",
    "stch": "STCH",
    "gradnorm": "GradNorm",
    "pcgrad": "PCGrad",
    "mgda": "MGDA",
    "cagrad": "CAGrad",
    "imtl_g": "IMTLG",
    "nash": "NashMTL",
    "metabalance": "MetaBalance",
    "db_mtl": "DBMTL",
}

__all__ = ["BALANCINGS", "create_balancing", *BALANCINGS.values()]


def create_balancing(name: str, num_tasks: int, **arguments: Any) -> "Balancing":
    """Build a strategy by name.

    Args:
        name: A key of :data:`BALANCINGS`.
        num_tasks: ``T``.
        **arguments: Of the strategy.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: The strategy has no such argument.

    Example:
        >>> create_balancing("cagrad", 3, c=0.4)
        CAGrad(num_tasks=3)
    """
    if name not in BALANCINGS:
        raise UnknownNameError("balancing", name, BALANCINGS)
    kind = __getattr__(BALANCINGS[name])
    try:
        built: Balancing = kind(num_tasks, **arguments)
    except TypeError as error:
        raise ArgumentError(f"balancing {name!r} got {arguments}: {error}.") from error
    return built


def __getattr__(name: str) -> Any:
    for module, kind in BALANCINGS.items():
        if kind == name:
            return getattr(importlib.import_module(f"moeapps.training.balancing.{module}"), kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *BALANCINGS.values()])
