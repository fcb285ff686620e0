"""Rendered crowds in perspective, with the exact centre of every head."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, UnknownNameError

RADII = {"narrow": (1.3, 7.0), "wide": (1.2, 15.0)}
"""Smallest and largest radius of a head in pixels, on a canvas of 96."""
CANVAS = 96

_TONES = np.array(
    [(0.93, 0.78, 0.66), (0.80, 0.60, 0.46), (0.55, 0.38, 0.27), (0.33, 0.22, 0.16),
     (0.12, 0.10, 0.10)]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Crowd:
    """A rendered crowd and what it was made of.

    Args:
        image: float32 ``[S, S, 3]``, 0 to 1.
        points: Centres of the heads, float64 ``[N, 2]`` as (x, y), far heads first.
        radii: Of the heads ``[N]``, in pixels.
        scale: Radius that a head has at each pixel, float32 ``[S, S]``; 0 above the horizon.
    """

    image: NDArray[np.float32]
    points: NDArray[np.float64]
    radii: NDArray[np.float64]
    scale: NDArray[np.float32]


def render_crowd(
    rng: np.random.Generator,
    *,
    size: int = CANVAS,
    radii: str | tuple[float, float] = "narrow",
    people: float = 40.0,
) -> Crowd:
    r"""People on a plane that runs to a horizon; near ones hide far ones.

    A head at height :math:`y' = y + \tau (x - S/2)` below the horizon :math:`h_0` has the radius

    .. math:: r = r_{min} + (f r_{max} - r_{min})
        \operatorname{clip}\Big(\frac{y' - h_0}{S - h_0}, 0, 1.2\Big)

    with :math:`f \sim U(.5, 1)`, :math:`h_0 \sim U(-.1, .45) S` and :math:`\tau \sim U(-.2, .2)`.
    Of :math:`N \sim \text{Poisson}(40 e^{.7 n})`, :math:`n \sim N(0, 1)`, people placed with an
    intensity proportional to :math:`e^{\text{noise}} / r^2`, those are left whose distance from
    each larger one is at least 0.9 of its radius.

    Args:
        rng: Of everything.
        size: Side of the canvas. The radii grow with it.
        radii: A key of :data:`RADII`, or smallest and largest radius on a canvas of 96.
        people: 40 in the formula.

    Raises:
        UnknownNameError: Another name for the radii.
        ArgumentError: The canvas is below 16 pixels, or radii or people cannot be.

    Example:
        >>> crowd = render_crowd(np.random.default_rng(0))
        >>> crowd.image.shape, crowd.points.shape == (len(crowd.radii), 2)
        ((96, 96, 3), True)
    """
    smallest, largest = _radii(radii)
    if size < 16 or not people > 0:
        raise ArgumentError(
            f"size={size} and people={people} make no crowd. Choose a size from 16, people above 0."
        )
    smallest, largest = smallest * size / CANVAS, largest * size / CANVAS
    horizon, tilt = rng.uniform(-0.1, 0.45) * size, rng.uniform(-0.2, 0.2)
    largest = max(rng.uniform(0.5, 1.0) * largest, smallest)
    centres = np.arange(size) + 0.5
    height = centres[:, None] + tilt * (centres - size / 2)
    depth = np.clip((height - horizon) / (size - horizon), 0, 1.2)
    radius = smallest + (largest - smallest) * depth
    intensity = np.where(height > horizon, np.exp(_noise(rng, size, size / 10)) / radius**2, 0)

    wanted = int(rng.poisson(people * np.exp(rng.normal(0, 0.7))))
    points = _sample(rng, intensity, wanted)
    below = points[:, 1] + tilt * (points[:, 0] - size / 2)
    found = smallest + (largest - smallest) * np.clip((below - horizon) / (size - horizon), 0, 1.2)
    order = np.argsort(-found, kind="stable")
    kept = _thinned(points[order], found[order])[::-1]  # far people first
    points, found = points[order][kept], found[order][kept]

    image = _background(rng, size, height, horizon)
    for (x, y), r in zip(points, found, strict=True):
        cloth = rng.uniform(0.05, 0.95, 3)
        _ellipse(image, x, y + 2.2 * r, 1.35 * r, 1.9 * r, cloth)
        tone = _TONES[rng.integers(len(_TONES))] * rng.uniform(0.85, 1.1)
        _ellipse(image, x, y, 0.85 * r, 1.05 * r, tone)
    image += rng.normal(0, 0.02, image.shape)
    scale = np.where(height > horizon, radius, 0).astype(np.float32)
    return Crowd(np.clip(image, 0, 1).astype(np.float32), points, found, scale)


def _radii(radii: str | tuple[float, float]) -> tuple[float, float]:
    if isinstance(radii, str):
        if radii not in RADII:
            raise UnknownNameError("set of radii", radii, RADII)
        return RADII[radii]
    smallest, largest = radii
    if not 0 < smallest <= largest:
        raise ArgumentError(
            f"radii={radii} cannot be. Pass the smallest above 0, then the largest."
        )
    return float(smallest), float(largest)


def _noise(rng: np.random.Generator, size: int, sigma: float) -> NDArray[np.float64]:
    """Smooth noise of mean 0 and deviation 1."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap")
    smooth -= smooth.mean()
    return np.asarray(smooth / (smooth.std() + 1e-12))


def _sample(
    rng: np.random.Generator, intensity: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Points drawn from an intensity per pixel, anywhere inside their pixel."""
    edges = intensity.ravel().cumsum()
    cells = np.searchsorted(edges, rng.random(count) * edges[-1], side="right")
    y, x = np.divmod(np.minimum(cells, intensity.size - 1), intensity.shape[1])
    return np.stack([x, y], 1) + rng.random((count, 2))


def _thinned(points: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows that stay, in order; the largest come first and keep others at a distance."""
    squared = ((points[:, None] - points) ** 2).sum(-1)
    close = squared < (0.9 * radii[:, None]) ** 2
    kept: list[int] = []
    for row in range(len(points)):
        if not close[kept, row].any():
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def _background(
    rng: np.random.Generator, size: int, height: NDArray[np.float64], horizon: float
) -> NDArray[np.float64]:
    """Ground with texture, sky, buildings, and round things of any size that are no heads."""
    image = np.empty((size, size, 3))
    image[:] = rng.uniform(0.25, 0.75, 3)
    image += 0.08 * _noise(rng, size, size / 12)[..., None]
    image += rng.normal(0, 0.03, (size, size, 1))
    sky = rng.uniform(0.55, 0.95) * np.array([0.9, 0.95, 1.0])
    image[height < horizon] = sky
    for _ in range(rng.integers(3, 10)):
        top, left = rng.integers(0, size, 2)
        tall, wide = rng.integers(size // 16, size // 3, 2)
        image[top : top + tall, left : left + wide] = rng.uniform(0.15, 0.85, 3)
    for _ in range(rng.integers(4, 22)):
        x, y = rng.uniform(0, size, 2)
        across, tall = rng.uniform(1, 10, 2) * size / CANVAS
        _ellipse(image, x, y, across, tall, rng.uniform(0.05, 0.95, 3))
    return image


def _ellipse(
    image: NDArray[np.float64], x: float, y: float, across: float, tall: float, colour: Any
) -> None:
    """Paint an ellipse with half axes ``across`` and ``tall`` and an edge of one pixel."""
    size = image.shape[0]
    left, right = max(0, int(x - across - 1)), min(size, int(x + across + 2))
    top, bottom = max(0, int(y - tall - 1)), min(size, int(y + tall + 2))
    if left >= right or top >= bottom:
        return
    columns = (np.arange(left, right) + 0.5 - x) / across
    rows = (np.arange(top, bottom) + 0.5 - y) / tall
    distance = np.sqrt(rows[:, None] ** 2 + columns**2)
    cover = np.clip((1 - distance) * min(across, tall) + 0.5, 0, 1)[..., None]
    window = image[top:bottom, left:right]
    window += cover * (colour - window)
