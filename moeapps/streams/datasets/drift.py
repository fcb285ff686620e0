r"""When the concept of a generated stream changes, and which of two concepts an instance follows.

Every generator is a function of (seed, t): instance ``t`` is made from counter-based draws, so a
stream can be cut into chunks or entered anywhere and stays the same, and needs no memory.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.streams.compiling import kernel
from moeapps.streams.datasets.generated import LENGTH

KINDS = ("none", "abrupt", "gradual")
ABRUPT_WIDTH = 50
# Every generator keeps draw 0 of an instance for the choice of its concept.
CONCEPT = 0


class Schedule(NamedTuple):
    """Changes of concept.

    Args:
        positions: Instances at which the old and the new concept are equally likely.
        width: Instances that a change takes.
    """

    positions: np.ndarray
    width: float


def schedule(kind: str, *, length: int = LENGTH, changes: int = 3) -> Schedule:
    r"""Equally spaced changes, each a sigmoid.

    Change :math:`i` of :math:`n` is centred half a width before :math:`i/(n+1)` of the stream:

    .. math:: P(\text{new at } t) = \frac{1}{1 + e^{-4 (t - p_i) / w}}

    Args:
        kind: ``"none"``; ``"abrupt"``, :math:`w = 50`; ``"gradual"``, :math:`w` = length / 20.
        length: Instances over which the changes are spread; the last concept stays after them.
        changes: Their number :math:`n`.

    Raises:
        UnknownNameError: Another kind.
        ArgumentError: ``length`` is too short for the changes.

    Example:
        >>> schedule("abrupt").positions.tolist()
        [249975.0, 499975.0, 749975.0]
        >>> schedule("gradual").positions.tolist()
        [225000.0, 475000.0, 725000.0]
    """
    if kind not in KINDS:
        raise UnknownNameError("drift", kind, KINDS)
    if kind == "none":
        return Schedule(np.empty(0), 0.0)
    width = float(ABRUPT_WIDTH) if kind == "abrupt" else length / 20
    if length / (changes + 1) < 2 * width:
        least = 2 * ABRUPT_WIDTH * (changes + 1)
        raise ArgumentError(
            f"length={length} leaves no room for {changes} changes. Expected at least {least} "
            "instances; pass a larger length, or take the stream without drift."
        )
    steps = np.arange(1, changes + 1)
    return Schedule(steps * (length / (changes + 1)) - width / 2, width)


@kernel
def concept_at(t: int, draw: float, positions: np.ndarray, width: float) -> int:
    """Index of the concept that instance ``t`` follows, given its uniform draw."""
    concept = 0
    for position in positions:
        if draw < 1 / (1 + np.exp(-4 * (t - position) / width)):
            concept += 1
    return concept


def stream_key(name: str, seed: int) -> int:
    """Key of a stream's draws: no two generators or seeds, and no model, share their draws.

    Example:
        >>> stream_key("sea", 0) == stream_key("led", 0)
        False
    """
    digest = hashlib.blake2b(f"moeapps.streams {name} {int(seed)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # fits int64
