"""Bad weather made over clean photographs, with the maps that it was made from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, UnknownNameError

Map = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Weathered:
    """A degraded photograph.

    Args:
        image: Float32 ``[H, W, 3]`` from 0 to 1.
        maps: What it was made from, float32 ``[H, W]`` from 0 to 1 each: ``"transmission"`` and
            ``"depth"``, ``"streaks"``, ``"drops"``, ``"flakes"``, ``"gain"``.
    """

    image: Map
    maps: dict[str, Map]


def add_weather(
    clean: NDArray[np.generic], weather: str, rng: np.random.Generator, depth: Map | None = None
) -> Weathered:
    """Degrade a photograph; the same generator state gives the same image to the last bit.

    Sizes of streaks, drops and flakes are in pixels, made for photographs of some 200 to 400 rows.

    Args:
        clean: ``[H, W, 3]``, uint8 or floats from 0 to 1.
        weather: One of :data:`WEATHER`.
        rng: Of everything that is drawn.
        depth: ``[H, W]`` from 0 (near) to 1 where it is known; drawn by :func:`draw_depth` if None.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: The photograph or its depth has another shape or range.

    Example:
        >>> grey = np.full((40, 60, 3), 0.5, np.float32)
        >>> foggy = add_weather(grey, "haze", np.random.default_rng(0))
        >>> foggy.image.shape, sorted(foggy.maps)
        ((40, 60, 3), ['depth', 'transmission'])
    """
    if weather not in WEATHER:
        raise UnknownNameError("weather", weather, WEATHER)
    image = np.asarray(clean)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ArgumentError(f"The photograph has the shape {image.shape}. Pass [H, W, 3].")
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / 255
    image = image.astype(np.float32)
    if not (image.min() >= 0 and image.max() <= 1):  # NaN is neither
        raise ArgumentError("The photograph has values outside of 0 to 1. Scale it, or pass uint8.")
    if depth is not None and depth.shape != image.shape[:2]:
        raise ArgumentError(f"depth is {depth.shape}, the photograph {image.shape[:2]}.")
    return WEATHER[weather](image, rng, depth)


def draw_depth(height: int, width: int, rng: np.random.Generator) -> Map:
    r"""A made-up depth of a scene: a ground plane under a horizon, and smooth bumps.

    .. math:: d = 0.75\, g + 0.25\, n, \qquad g(y) = 1 / \max(y / H - h_0,\ 0.08)

    with ``g`` and the noise ``n`` (Gaussian, :math:`\sigma = H / 12`) rescaled to 0 to 1.

    Args:
        height: Rows.
        width: Columns.
        rng: Of horizon and noise.
    """
    horizon = rng.uniform(-0.2, 0.4)
    rows = np.arange(height, dtype=np.float32) / height
    ground = _rescaled(1 / np.maximum(rows - horizon, 0.08))
    return 0.75 * ground[:, None] + 0.25 * smooth_noise(height, width, height / 12, rng)


def smooth_noise(height: int, width: int, sigma: float, rng: np.random.Generator) -> Map:
    """Gaussian noise without details smaller than ``sigma``, rescaled to 0 to 1."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal((height, width), dtype=np.float32)
    return _rescaled(gaussian_filter(noise, sigma))


def haze(clean: Map, rng: np.random.Generator, depth: Map | None = None) -> Weathered:
    r"""Koschmieder's law, :math:`I = J t + A (1 - t)` with :math:`t = e^{-\beta (0.15 + d)}`."""
    depth = draw_depth(clean.shape[0], clean.shape[1], rng) if depth is None else depth
    transmission = np.exp(-rng.uniform(0.8, 2.4) * (0.15 + depth)).astype(np.float32)
    light = rng.uniform(0.7, 1.0) * (1 + rng.uniform(-0.05, 0.05, 3))
    through = transmission[..., None]
    image = clean * through + light.astype(np.float32) * (1 - through)
    return _weathered(image, transmission=transmission, depth=depth)


def rain(clean: Map, rng: np.random.Generator, depth: Map | None = None) -> Weathered:
    r"""Layers of streaks behind a veil, :math:`I = T (J + S) + (1 - T) A`, :math:`T = e^{-v d}`."""
    depth = draw_depth(clean.shape[0], clean.shape[1], rng) if depth is None else depth
    streaks = np.zeros(clean.shape[:2], np.float32)
    for _ in range(rng.integers(1, 4)):
        streaks += _streaks(clean.shape[0], clean.shape[1], rng)
    streaks = streaks.clip(0, 1) * np.float32(rng.uniform(0.5, 0.9))
    transmission = np.exp(-rng.uniform(0, 0.5) * depth).astype(np.float32)
    through, light = transmission[..., None], np.float32(rng.uniform(0.6, 0.9))
    image = through * (clean + streaks[..., None]) + (1 - through) * light
    return _weathered(image, streaks=streaks, transmission=transmission, depth=depth)


def raindrop(clean: Map, rng: np.random.Generator, depth: Map | None = None) -> Weathered:
    r"""Drops on the lens, :math:`I = (1 - M) J + M B`; B is the scene upside down, out of focus."""
    from scipy.ndimage import gaussian_filter

    mask = _drops(clean.shape[0], clean.shape[1], rng) * np.float32(rng.uniform(0.75, 1.0))
    content = gaussian_filter(clean[::-1, ::-1], (4, 4, 0))
    content = 0.8 * content + 0.2 * np.float32(rng.uniform(0.6, 1.0))
    image = (1 - mask[..., None]) * clean + mask[..., None] * content
    return _weathered(image, drops=mask)


def snow(clean: Map, rng: np.random.Generator, depth: Map | None = None) -> Weathered:
    r"""Flakes of three sizes, :math:`I = J (1 - z) + z (0.85 + 0.15 n)`."""
    from scipy.ndimage import gaussian_filter

    shape = clean.shape[:2]
    flakes = np.zeros(shape, np.float32)
    amount = rng.uniform(0.5, 1.8)
    for sigma, density in ((0.6, 0.02), (1.1, 0.008), (2.0, 0.002)):
        seeds = (rng.random(shape, np.float32) < density * amount).astype(np.float32)
        spread = gaussian_filter(seeds, sigma) * (2 * np.pi * sigma**2)  # a lone flake peaks at 1
        flakes = np.maximum(flakes, spread.clip(0, 1) * np.float32(rng.uniform(0.6, 1.0)))
    noise = rng.random((*shape, 1), np.float32)
    z = flakes[..., None]
    return _weathered(clean * (1 - z) + z * (0.85 + 0.15 * noise), flakes=flakes)


def night(clean: Map, rng: np.random.Generator, depth: Map | None = None) -> Weathered:
    r"""Little light on a noisy sensor, :math:`I = c J^g + \mathcal N(0, 0.01^2)`."""
    dark = np.float32(rng.uniform(1.6, 2.8))
    gain = (rng.uniform(0.35, 0.6) * (1 + rng.uniform(-0.12, 0.12, 3))).astype(np.float32)
    noise = rng.standard_normal(clean.shape, np.float32) * np.float32(0.01)
    lit = gain * clean**dark
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(clean > 0, lit / clean, 0).mean(-1)
    return _weathered(lit + noise, gain=ratio.astype(np.float32))


WEATHER: dict[str, Callable[[Map, np.random.Generator, Map | None], Weathered]] = {
    "haze": haze,
    "rain": rain,
    "raindrop": raindrop,
    "snow": snow,
    "night": night,
}
"""The kinds of weather by name."""


def _weathered(image: Map, **maps: Map) -> Weathered:
    kept = {name: np.asarray(value, np.float32) for name, value in maps.items()}
    return Weathered(image.clip(0, 1).astype(np.float32), kept)


def _rescaled(values: NDArray[np.floating]) -> Map:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


def _streaks(height: int, width: int, rng: np.random.Generator) -> Map:
    """Random points, each drawn out to a line; all of one layer fall alike."""
    from scipy.signal import fftconvolve

    half, angle = rng.uniform(4, 11), rng.uniform(-0.5, 0.5)
    kernel = line_kernel(half, angle) * np.float32(rng.uniform(3, 7))
    margin = kernel.shape[0] - 1
    shape = (height + margin, width + margin)  # streaks may begin outside
    seeds = rng.random(shape, np.float32) < rng.uniform(0.004, 0.015)
    amplitudes = rng.uniform(0.5, 1.0, shape).astype(np.float32)
    # Direct convolution with kernels of this size would take most of the time of a whole set.
    return fftconvolve(seeds * amplitudes, kernel, mode="valid").astype(np.float32)


def line_kernel(half: float, angle: float, sigma: float = 0.45) -> Map:
    """A line with soft edges and ends, of sum 1.

    Args:
        half: Half its length in pixels.
        angle: From upright, in radians.
        sigma: Of the Gaussian across it.
    """
    reach = int(np.ceil(half)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    along = y * np.cos(angle) + x * np.sin(angle)
    across = x * np.cos(angle) - y * np.sin(angle)
    kernel = np.exp(-0.5 * (across / sigma) ** 2) * np.clip(half + 0.5 - np.abs(along), 0, 1)
    return (kernel / kernel.sum()).astype(np.float32)


def _drops(height: int, width: int, rng: np.random.Generator) -> Map:
    r"""Largest :math:`\mathrm{clip}(1.3 - q, 0, 1)` over the drops, q the squared radius."""
    count = max(1, rng.poisson(rng.uniform(0.003, 0.006) * height * width))
    y, x = rng.uniform(0, height, count), rng.uniform(0, width, count)
    radius, aspect = rng.uniform(1.5, 5.0, count), rng.uniform(0.8, 1.4, count)
    reach = 8  # 1.3 ** 0.5 * 5 * 1.4, the farthest that a drop can go
    offsets = np.arange(-reach, reach + 1)
    rows = np.floor(y).astype(int)[:, None] + offsets  # [N, 17]
    columns = np.floor(x).astype(int)[:, None] + offsets
    down = ((rows + 0.5 - y[:, None]) / (radius * aspect)[:, None]) ** 2
    right = ((columns + 0.5 - x[:, None]) / radius[:, None]) ** 2
    alpha = np.clip(1.3 - down[:, :, None] - right[:, None, :], 0, 1).astype(np.float32)
    mask = np.zeros((height + 2 * reach, width + 2 * reach), np.float32)
    where = (rows[:, :, None] + reach, columns[:, None, :] + reach)
    np.maximum.at(mask, tuple(np.broadcast_arrays(*where)), alpha)
    return mask[reach:-reach, reach:-reach]
