"""PSNR and SSIM, image by image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError

_WINDOW, _SIGMA = 11, 1.5


def psnr(restored: Tensor, target: Tensor, *, y_channel: bool = False) -> Tensor:
    r"""Peak signal-to-noise ratio of each image in dB.

    .. math:: -10 \log_{10} \mathrm{mean}\,(\hat x - x)^2

    The mean over a set is the mean of these, not the ratio of the pooled error.

    Args:
        restored: ``[B, 3, H, W]``; clamped to 0 to 1.
        target: The same, from 0 to 1.
        y_channel: Luma alone (BT.601, limited range) in place of RGB: some 5 dB more for the same
            images, so a table must say which.

    Shape:
        - output float64 ``[B]``; infinite for equal images

    Raises:
        ArgumentError: The shapes differ.

    Example:
        >>> black = torch.zeros(1, 3, 16, 16)
        >>> psnr(black + 0.1, black).round(decimals=3).tolist()
        [20.0]
    """
    x, y = _ready(restored, target, y_channel)
    return -10 * (x - y).square().mean((1, 2, 3)).log10()


def ssim(restored: Tensor, target: Tensor, *, y_channel: bool = False) -> Tensor:
    r"""Structural similarity of each image.

    .. math:: \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
        {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}

    in Gaussian windows of 11 x 11 pixels (:math:`\sigma = 1.5`, :math:`c = (0.01^2, 0.03^2)`),
    averaged over all windows inside the image and over channels. Images are not made smaller
    before, as some libraries do.

    Args:
        restored: ``[B, 3, H, W]``; clamped to 0 to 1.
        target: The same, from 0 to 1.
        y_channel: As in :func:`psnr`.

    Shape:
        - output float64 ``[B]``

    Raises:
        ArgumentError: The shapes differ.

    Notes:
        Sides of less than 11 pixels are extended by repeating the border.

    Example:
        >>> image = torch.rand(2, 3, 16, 16)
        >>> ssim(image, image).round(decimals=6).tolist()
        [1.0, 1.0]
    """
    x, y = _ready(restored, target, y_channel)
    down, right = (max(0, _WINDOW - side) for side in x.shape[-2:])
    if down or right:
        x, y = (F.pad(z, (0, right, 0, down), mode="replicate") for z in (x, y))
    batch = len(x)
    moments = _blur(torch.cat([x, y, x * x, y * y, x * y]))
    mx, my, xx, yy, xy = moments.split(batch)
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mx * my + c1) * (2 * cov + c2)
    return (top / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean((1, 2, 3))


def luma(images: Tensor) -> Tensor:
    """BT.601 luma in its limited range, ``[B, 3, H, W]`` to ``[B, 1, H, W]``."""
    weights = images.new_tensor([65.481, 128.553, 24.966]) / 255
    return (images * weights.view(1, 3, 1, 1)).sum(1, keepdim=True) + 16 / 255


def _ready(restored: Tensor, target: Tensor, y_channel: bool) -> tuple[Tensor, Tensor]:
    if restored.shape != target.shape or target.dim() != 4 or target.shape[1] != 3:
        raise ArgumentError(
            f"Got images {list(restored.shape)} and targets {list(target.shape)}. Pass both as "
            "[B, 3, H, W]."
        )
    x, y = restored.double().clamp(0, 1), target.double()
    return (luma(x), luma(y)) if y_channel else (x, y)


def _blur(images: Tensor) -> Tensor:
    """Means in the windows that lie inside, axis after axis."""
    places = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-0.5 * (places / _SIGMA) ** 2)
    weights = weights / weights.sum()
    for dim in (-2, -1):  # shifted sums: in float64 several times as fast as a convolution
        size = images.shape[dim] - _WINDOW + 1
        means = images.narrow(dim, 0, size) * float(weights[0])
        for place, weight in enumerate(weights.tolist()[1:], 1):
            means = means.add_(images.narrow(dim, place, size), alpha=weight)
        images = means
    return images
