"""Colour operations with a strength of their own for each image of a batch, values 0 to ``top``."""

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)


def blend(images: Tensor, other: Tensor, share: Tensor, top: float = 1.0) -> Tensor:
    """``share`` of the image plus the rest of another, ``share [B]`` may exceed 1; clipped."""
    share = share.to(images)[:, None, None, None]
    return (share * images + (1 - share) * other).clamp(0, top)


def luma(images: Tensor) -> Tensor:
    """Brightness of each pixel, ``[B, 1, H, W]``; one channel is its own brightness."""
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(_LUMA)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def brightness(images: Tensor, factor: Tensor, top: float = 1.0) -> Tensor:
    """Multiply by a factor per image."""
    return blend(images, torch.zeros_like(images), factor, top)


def contrast(images: Tensor, factor: Tensor, top: float = 1.0) -> Tensor:
    """Scale the distance from the mean brightness by a factor per image."""
    return blend(images, luma(images).mean((1, 2, 3), keepdim=True), factor, top)


def saturation(images: Tensor, factor: Tensor, top: float = 1.0) -> Tensor:
    """Scale the distance from grey by a factor per image."""
    return blend(images, luma(images), factor, top)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of images in 0..1 by ``turn [B]`` of a full circle; grey stays grey.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
        >>> hue(red, torch.tensor([1 / 3])).flatten().round(decimals=3).abs().tolist()
        [0.0, 1.0, 0.0]
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    top, low = images.amax(1), images.amin(1)
    span = top - low
    safe = span.clamp_min(1e-12)
    sector = torch.where(
        top == red,
        (green - blue) / safe,
        torch.where(top == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = (sector + 6 * turn.to(images)[:, None, None]) % 6
    # Channel n of (red, green, blue) = (5, 3, 1): the well-known closed form from HSV to RGB.
    offset = images.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    place = (offset + sector[:, None]) % 6
    ramp = torch.minimum(place, 4 - place).clamp(0, 1)
    return top[:, None] - span[:, None] * ramp


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int = 4) -> Tensor:
    """Blur each image with a deviation of its own, ``sigma [B]`` in pixels above 0."""
    count, channels, height, width = images.shape
    radius = min(radius, height - 1, width - 1)  # mirrored borders reach no farther
    place = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (place / sigma.to(images)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    kernel = kernel.repeat_interleave(channels, 0)[:, None]  # [B * C, 1, width]
    flat = F.pad(images.reshape(1, count * channels, height, width), [radius] * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, :, None], groups=count * channels)
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=count * channels)
    return flat.reshape(images.shape)


def sharpness(images: Tensor, factor: Tensor, top: float = 255.0) -> Tensor:
    """Scale the distance from a smoothed image by a factor per image; borders stay as they are."""
    channels = images.shape[1]
    kernel = torch.full((3, 3), 1 / 13, dtype=images.dtype, device=images.device)
    kernel[1, 1] = 5 / 13
    smooth = images.clone()
    inner = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels).round()
    smooth[:, :, 1:-1, 1:-1] = inner
    return blend(images, smooth, factor, top)
