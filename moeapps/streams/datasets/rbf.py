"""RBF: clouds around centroids that wander through the unit cube."""

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError
from moeapps.streams.compiling import kernel
from moeapps.streams.datasets.drift import schedule, stream_key
from moeapps.streams.datasets.generated import LENGTH, generated
from moeapps.streams.datasets.stream import Stream
from moeapps.streams.random_draws import uniform

SPEEDS = {"rbf": 0.0, "rbf_m": 1e-4, "rbf_f": 1e-3}

# Draws per instance; the draws that make the centroids come after those of the directions.
_CENTROID, _LENGTH, _ANGLE, _DIRECTION = 0, 1, 2, 3


def load(
    card: DatasetCard,
    *,
    limit: int | None = None,
    seed: int = 0,
    length: int = LENGTH,
    num_features: int = 10,
    num_centroids: int = 50,
    num_classes: int = 2,
    speed: float | None = None,
) -> Stream:
    r"""Instances around a centroid that is picked by weight; its class is theirs.

    Centroid k starts at :math:`c_k \sim U(0,1)^d` with a random class, spread
    :math:`s_k \sim U(0,1)` and weight :math:`U(0,1)`; it travels along a unit direction
    :math:`v_k` and is reflected at 0 and 1. An instance lies in a random direction u from it:

    .. math:: x_t = \mathrm{reflect}(c_k + t\,\mathrm{speed}\,v_k) + \epsilon\,s_k\,u,\quad
        \epsilon \sim N(0, 1)

    Args:
        card: Which of the three streams.
        limit: Instances to give.
        seed: What everything is drawn from.
        length: Instances given when there is no limit.
        num_features: Dimension d.
        num_centroids: Number of centroids, all moving.
        num_classes: Classes given to them; a class that no centroid drew does not occur.
        speed: Way of a centroid per instance; None takes the stream's own: 0 (``rbf``), 1e-4
            (``rbf_m``), 1e-3 (``rbf_f``).

    Raises:
        ArgumentError: A count is below 1 or the speed is negative.

    Notes:
        MOA and river put a centroid that would leave the cube on its surface; here it is reflected
        exactly, which makes its place a formula of t. Directions u come from a cube, as there.
    """
    speed = SPEEDS[card.name] if speed is None else speed
    if min(num_features, num_centroids, num_classes) < 1 or speed < 0:
        raise ArgumentError(
            f"num_features={num_features}, num_centroids={num_centroids}, "
            f"num_classes={num_classes}, speed={speed} cannot work. Expected counts of at least 1 "
            "and a speed of at least 0."
        )
    key = stream_key(card.name, seed)
    centres, ways, spreads, classes, steps = _centroids(
        key, num_features, num_centroids, num_classes
    )

    def fill(start: int, X: np.ndarray, y: np.ndarray) -> None:  # noqa: N803
        _fill(key, start, X, y, centres, speed * ways, spreads, classes, steps)

    return generated(
        card, fill, schedule("none"), limit=limit, length=length, num_classes=num_classes,
        seed=seed, feature_names=[f"x{j}" for j in range(num_features)],
    )  # fmt: skip


def _centroids(key: int, d: int, count: int, num_classes: int) -> tuple[np.ndarray, ...]:
    """Places and directions ``[K, d]``; spreads, classes and cumulated weights ``[K]``."""

    def draws(place: int) -> np.ndarray:
        return np.array([uniform(key, _DIRECTION + d + place, k) for k in range(count)])

    centres = np.stack([draws(3 + j) for j in range(d)], axis=1)
    ways = np.stack([draws(3 + d + j) for j in range(d)], axis=1)
    ways /= np.sqrt((ways**2).sum(axis=1, keepdims=True))
    steps = np.cumsum(draws(0))
    classes = (draws(2) * num_classes).astype(np.int64)
    return centres, ways, draws(1), classes, steps / steps[-1]


@kernel
def _fill(
    key: int,
    start: int,
    X: np.ndarray,  # noqa: N803
    y: np.ndarray,
    centres: np.ndarray,
    ways: np.ndarray,
    spreads: np.ndarray,
    classes: np.ndarray,
    steps: np.ndarray,
) -> None:
    d = X.shape[1]
    for i in range(len(y)):
        t = start + i
        k = np.searchsorted(steps, uniform(key, _CENTROID, t), side="right")
        y[i] = classes[k]
        norm = 0.0
        for j in range(d):
            X[i, j] = 2 * uniform(key, _DIRECTION + j, t) - 1
            norm += X[i, j] ** 2
        # Box and Muller's normal draw; 1 - u is never 0.
        normal = np.sqrt(-2 * np.log(1 - uniform(key, _LENGTH, t)))
        normal *= np.cos(2 * np.pi * uniform(key, _ANGLE, t))
        scale = normal * spreads[k] / np.sqrt(norm)
        for j in range(d):
            place = (centres[k, j] + t * ways[k, j]) % 2.0
            X[i, j] = X[i, j] * scale + (2 - place if place > 1 else place)
