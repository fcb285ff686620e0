"""Density maps from points: every point is a Gaussian whose mass inside the image is one."""

from typing import Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from moeapps.errors import ArgumentError, UnknownNameError

Floats = NDArray[np.float64]
Mode = Literal["fixed", "knn", "size"]

REACH = 4.0
"""Standard deviations after which a Gaussian is cut off; what is left out is 6e-5 of its mass."""


def density_map(
    points: ArrayLike,
    size: tuple[int, int],
    sigma: float = 4.0,
    mode: Mode = "fixed",
    *,
    head_sizes: ArrayLike | None = None,
    normalize: bool = True,
) -> NDArray[np.float32]:
    r"""The map whose sum over any region is the number of points in it, up to the blur.

    .. math:: G_{yx} = \sum_i \frac{1}{m_i} \int_y^{y+1} \int_x^{x+1}
        \mathcal{N}(u; p_i, \sigma_i^2 I)\, du, \qquad \sum_{yx} G_{yx} = N

    where :math:`m_i` is the mass of the i-th Gaussian inside the image.

    Args:
        points: Centres ``(x, y)`` in continuous pixel coordinates: the top left pixel is the square
            from (0, 0) to (1, 1). A point outside ``[0, W] x [0, H]`` is not counted.
        size: Of the image, ``(H, W)``.
        sigma: Standard deviation in pixels; in mode ``"knn"`` that of images with fewer than four
            points.
        mode: ``"fixed"``: the same ``sigma`` everywhere. ``"knn"``: :func:`knn_sigmas`. ``"size"``:
            :func:`size_sigmas` of ``head_sizes``.
        head_sizes: Of each point, ``[N]`` or boxes' width and height ``[N, 2]``; mode ``"size"``.
        normalize: Give every point mass one; without it, what falls outside the image is lost.

    Returns:
        float32 ``[H, W]``.

    Raises:
        ArgumentError: Points that are not ``[N, 2]`` and finite, a sigma that is not positive, or
            sizes that do not fit.
        UnknownNameError: There is no such mode.

    Notes:
        The Gaussian is integrated over every pixel, not sampled at its middle, so centres keep
        their fraction of a pixel. Departures from the released recipe: there the window is moved
        inwards at the border and centres are rounded.

    References:
        Zhang et al., *Single-Image Crowd Counting via Multi-Column Convolutional Neural Network*,
        CVPR 2016 (mode ``"knn"``).

    Example:
        >>> density = density_map([[0.0, 0.0], [20.5, 9.25]], (32, 48))
        >>> density.shape, round(float(density.sum(dtype="float64")), 5)
        ((32, 48), 2.0)
    """
    centres = as_points(points)
    keep = inside(centres, size)
    if not sigma > 0:
        raise ArgumentError(f"sigma={sigma} is no standard deviation. Choose one above 0 pixels.")
    if mode == "fixed":
        sigmas = np.full(keep.sum(), float(sigma))
    elif mode == "knn":
        sigmas = knn_sigmas(centres[keep], fallback=sigma)
    elif mode == "size":
        sigmas = size_sigmas(_sizes_of(head_sizes, len(centres))[keep])
    else:
        raise UnknownNameError("mode of density maps", mode, ("fixed", "knn", "size"))
    return _add_gaussians(centres[keep], sigmas, size, normalize).astype(np.float32)


def knn_sigmas(
    points: ArrayLike,
    *,
    neighbours: int = 3,
    factor: float = 0.3,
    limits: tuple[float, float] = (1.0, 15.0),
    fallback: float = 4.0,
) -> Floats:
    """Blur by crowding: ``factor`` times the mean distance to the nearest neighbours.

    Args:
        points: ``[N, 2]``.
        neighbours: How many; with too few points, every sigma is ``fallback``.
        factor: Of the mean distance.
        limits: Smallest and largest sigma.
        fallback: Sigma of images with at most ``neighbours`` points.

    Example:
        >>> knn_sigmas([[0, 0], [10, 0], [0, 10], [10, 10]]).round(3).tolist()
        [3.414, 3.414, 3.414, 3.414]
    """
    centres = as_points(points)
    if len(centres) <= neighbours:
        return np.full(len(centres), float(fallback))
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(centres).query(centres, k=neighbours + 1)  # the first is the point
    return np.clip(factor * distances[:, 1:].mean(1), *limits)


def size_sigmas(
    head_sizes: ArrayLike, *, factor: float = 0.25, limits: tuple[float, float] = (1.0, 15.0)
) -> Floats:
    """Blur by size: ``factor`` times the size of the head, for boxes the mean of their sides.

    Example:
        >>> size_sigmas([[16.0, 9.0], [1.0, 1.0]]).tolist()  # geometric mean 12
        [3.0, 1.0]
    """
    sizes = np.asarray(head_sizes, np.float64)
    if sizes.ndim == 2:
        sizes = np.sqrt(sizes.prod(1))
    return np.clip(factor * sizes, *limits)


def inside(points: ArrayLike, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which points lie in an image of this ``(H, W)``, its right and lower border included.

    Example:
        >>> inside([[0, 0], [8, 4], [8.1, 4]], (4, 8)).tolist()
        [True, True, False]
    """
    centres = as_points(points)
    within = (centres >= 0) & (centres <= np.array(size[::-1]))
    return within[:, 0] & within[:, 1]


def as_points(points: ArrayLike) -> Floats:
    """Points as float64 ``[N, 2]``; anything empty is no point."""
    array = np.asarray(points, np.float64)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise ArgumentError(
            f"points of shape {list(array.shape)} are not N finite pairs. Expected [N, 2] with "
            "columns x and y; look at the annotation file."
        )
    return array


def sum_pool(density: Tensor, stride: int) -> Tensor:
    """Mass per ``stride x stride`` cell, ``[B, C, H, W] -> [B, C, ceil(H/s), ceil(W/s)]``.

    Example:
        >>> import torch
        >>> sum_pool(torch.ones(1, 1, 5, 4), 4).tolist()
        [[[[16.0], [4.0]]]]
    """
    height, width = density.shape[-2:]
    padded = F.pad(density, (0, -width % stride, 0, -height % stride))
    return F.avg_pool2d(padded, stride) * stride**2


def _add_gaussians(
    centres: Floats, sigmas: Floats, size: tuple[int, int], normalize: bool
) -> Floats:
    """The sum of the Gaussians: each is the outer product of its rows' and columns' masses."""
    height, width = size
    reach = int(np.ceil(REACH * sigmas.max(initial=0))) + 1
    canvas = np.zeros((height + 2 * reach, width + 2 * reach))
    columns = _masses(centres[:, 0], sigmas, width, reach, normalize)
    rows = _masses(centres[:, 1], sigmas, height, reach, normalize)
    starts, span = np.floor(centres).astype(int), 2 * reach
    for (x, y), row, column in zip(starts, rows, columns, strict=True):
        canvas[y : y + span, x : x + span] += row[:, None] * column
    return canvas[reach : reach + height, reach : reach + width]


def _masses(x: Floats, sigma: Floats, length: int, reach: int, normalize: bool) -> Floats:
    """Mass of each Gaussian in the ``2 reach`` pixels around it, none outside the image."""
    from scipy.special import ndtr

    x, sigma = x[:, None], sigma[:, None]
    edges = np.floor(x) + np.arange(-reach, reach + 1)
    edges = edges.clip(x - REACH * sigma, x + REACH * sigma).clip(0, length)
    masses = np.diff(ndtr((edges - x) / sigma))
    total = masses.sum(1, keepdims=True) if normalize else 1 - 2 * ndtr(-REACH)
    return masses / total


def _sizes_of(head_sizes: ArrayLike | None, num_points: int) -> Floats:
    sizes = np.zeros(0) if head_sizes is None else np.asarray(head_sizes, np.float64)
    if len(sizes) != num_points or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ArgumentError(
            f"mode='size' got {'no' if head_sizes is None else len(sizes)} head sizes for "
            f"{num_points} points; expected one positive number or box each. Give head_sizes, or "
            "use mode='knn'."
        )
    return sizes
