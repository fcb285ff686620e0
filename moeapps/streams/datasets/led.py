"""LED: read a digit from seven noisy segments among seventeen random bits."""

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.streams.compiling import kernel
from moeapps.streams.datasets.drift import CONCEPT, concept_at, schedule, stream_key
from moeapps.streams.datasets.generated import LENGTH, generated
from moeapps.streams.datasets.stream import Stream
from moeapps.streams.random_draws import uniform

SEGMENTS = np.array(
    [[int(bit) for bit in digit] for digit in (
        "1110111", "0010010", "1011101", "1011011", "0111010",
        "1101011", "1101111", "1010010", "1111111", "1111011",
    )]
)  # fmt: skip
RELEVANT, RANDOM = 7, 17
SWAPPED = np.array([1, 3, 5, 7])  # segments that changed places, per concept

_DIGIT, _BITS, _FLIPS = CONCEPT + 1, CONCEPT + 2, CONCEPT + 3
_KINDS = {"led": "none", "led_a": "abrupt", "led_g": "gradual"}


def load(
    card: DatasetCard,
    *,
    limit: int | None = None,
    seed: int = 0,
    length: int = LENGTH,
    noise: float = 0.1,
) -> Stream:
    r"""Ten digits on a seven-segment display, each segment inverted with a probability.

    24 binary nominal features: seven segments and 17 fair random bits. In concept c of ``led_a``
    and ``led_g``, :math:`n_c = 1, 3, 5, 7` segments have changed places with random bits:
    positions :math:`(i + r) \bmod 7` and :math:`7 + (i + o) \bmod 17` for :math:`i < n_c`, with
    :math:`r` and :math:`o` drawn once.

    Args:
        card: Which of the three streams.
        limit: Instances to give.
        seed: What everything is drawn from.
        length: Instances over which the concepts are spread.
        noise: Probability that a segment is inverted.
    """
    changes = schedule(_KINDS[card.name], length=length)
    key = stream_key(card.name, seed)
    place = _place(key)
    # Without drift the segments stay where the published tables have them: in front.
    swapped = SWAPPED if len(changes.positions) else np.zeros(1, np.int64)

    def fill(start: int, X: np.ndarray, y: np.ndarray) -> None:  # noqa: N803
        _fill(key, start, X, y, *changes, SEGMENTS, swapped, place, noise)

    return generated(
        card, fill, changes, limit=limit, length=length, num_classes=10, seed=seed,
        feature_names=[f"x{j}" for j in range(RELEVANT + RANDOM)],
        values=dict.fromkeys(range(RELEVANT + RANDOM), ("0", "1")),
    )  # fmt: skip


def _place(key: int) -> np.ndarray:
    """Starts of the swaps: among the segments, among the random bits."""
    r = int(uniform(key, _FLIPS + RELEVANT, 0) * RELEVANT)
    o = int(uniform(key, _FLIPS + RELEVANT, 1) * RANDOM)
    return np.array([r, o])


@kernel
def _fill(
    key: int,
    start: int,
    X: np.ndarray,  # noqa: N803
    y: np.ndarray,
    positions: np.ndarray,
    width: float,
    segments: np.ndarray,
    swapped: np.ndarray,
    place: np.ndarray,
    noise: float,
) -> None:
    for i in range(len(y)):
        t = start + i
        digit = int(uniform(key, _DIGIT, t) * 10)
        y[i] = digit
        for j in range(RELEVANT):
            flip = uniform(key, _FLIPS + j, t) < noise
            X[i, j] = segments[digit, j] ^ flip
        bits = int(uniform(key, _BITS, t) * 2.0**RANDOM)
        for j in range(RANDOM):
            X[i, RELEVANT + j] = (bits >> j) & 1
        concept = concept_at(t, uniform(key, CONCEPT, t), positions, width)
        for j in range(swapped[concept]):
            a = (j + place[0]) % RELEVANT
            b = RELEVANT + (j + place[1]) % RANDOM
            X[i, a], X[i, b] = X[i, b], X[i, a]
