"""SEA: is the sum of two numbers above a threshold that moves?"""

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.streams.compiling import kernel
from moeapps.streams.datasets.drift import CONCEPT, concept_at, schedule, stream_key
from moeapps.streams.datasets.generated import LENGTH, generated
from moeapps.streams.datasets.stream import Stream
from moeapps.streams.random_draws import uniform

THRESHOLDS = np.array([8.0, 9.0, 9.5, 8.0])  # per concept

_NOISE, _FEATURES = CONCEPT + 1, CONCEPT + 2
_KINDS = {"sea": "none", "sea_a": "abrupt", "sea_g": "gradual"}


def load(
    card: DatasetCard,
    *,
    limit: int | None = None,
    seed: int = 0,
    length: int = LENGTH,
    noise: float = 0.1,
) -> Stream:
    r"""Three features in U(0, 10); class 1 if the first two sum to more than a threshold.

    .. math:: y = [x_0 + x_1 > \theta_c],\quad \theta = 8, 9, 9.5, 8

    Args:
        card: Which of the three streams.
        limit: Instances to give.
        seed: What everything is drawn from.
        length: Instances over which the concepts are spread.
        noise: Probability that a label is flipped.
    """
    changes = schedule(_KINDS[card.name], length=length)
    key = stream_key(card.name, seed)

    def fill(start: int, X: np.ndarray, y: np.ndarray) -> None:  # noqa: N803
        _fill(key, start, X, y, *changes, THRESHOLDS, noise)

    return generated(
        card, fill, changes, limit=limit, length=length, num_classes=2, seed=seed,
        feature_names=["x0", "x1", "x2"],
    )  # fmt: skip


@kernel
def _fill(
    key: int,
    start: int,
    X: np.ndarray,  # noqa: N803
    y: np.ndarray,
    positions: np.ndarray,
    width: float,
    thresholds: np.ndarray,
    noise: float,
) -> None:
    for i in range(len(y)):
        t = start + i
        for j in range(3):
            X[i, j] = 10 * uniform(key, _FEATURES + j, t)
        concept = concept_at(t, uniform(key, CONCEPT, t), positions, width)
        above = X[i, 0] + X[i, 1] > thresholds[concept]
        flip = uniform(key, _NOISE, t) < noise
        y[i] = above ^ flip
