"""Foreign images, of none of the known classes, in the form of the known ones."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moeapps.vision.batch_colour import luma
from moeapps.vision.datasets.images import CHANNELS, ImageFiles, ImageSet

_AT_ONCE = 1024


def in_form_of(known: ImageSet, foreign: ImageSet) -> ImageSet:
    """Foreign images with the channels of the known ones, and of their size if they have one.

    Where the known images are in memory the foreign ones are scaled until they cover that size, and
    what sticks out is cut off on both sides; files keep their size for the transform that follows.

    Args:
        known: Test images of the known classes.
        foreign: Other images, in memory or in files.

    Example:
        >>> grey = ImageSet(np.zeros((2, 8, 8), np.uint8), np.zeros(2, int), ("one",))
        >>> colour = ImageSet(np.full((3, 32, 40, 3), 255, np.uint8), np.zeros(3, int), ("other",))
        >>> found = in_form_of(grey, colour)
        >>> found.shape, int(found.images.min())
        ((8, 8, 1), 255)
    """
    images = foreign.images
    if isinstance(known.images, ImageFiles):
        mode = known.images.mode
        if isinstance(images, ImageFiles):
            images = replace(images, mode=mode)
        else:
            images = _converted(images, CHANNELS[mode], None)
    else:
        height, width, channels = known.shape
        # Files are decoded one by one, as each may have its own size.
        step = 1 if isinstance(images, ImageFiles) else _AT_ONCE
        starts = range(0, len(images), step)
        batches = (
            images[first][None] if isinstance(images, ImageFiles) else images[first : first + step]
            for first in starts
        )
        parts = [_converted(batch, channels, (height, width)) for batch in batches]
        images = np.concatenate(parts)
    return ImageSet(images, foreign.labels, foreign.class_names)


def _converted(
    pixels: NDArray[np.generic], channels: int, size: tuple[int, int] | None
) -> NDArray[np.generic]:
    """Pixels ``[N, H, W, C]`` of the same type in other channels, and another size if given."""
    given = pixels.shape[1:]
    if given == (*(size or given[:2]), channels):
        return pixels
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    if images.shape[1] != channels:
        images = luma(images) if channels == 1 else images.expand(-1, channels, -1, -1)
    if size is not None:
        images = _covering(images, size)
    if pixels.dtype == np.uint8:
        images = images.round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _covering(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scaled to cover a height and width, the middle kept."""
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    wanted = (max(size[0], round(scale * height)), max(size[1], round(scale * width)))
    images = F.interpolate(images, wanted, mode="bilinear", antialias=True)
    top, left = (wanted[0] - size[0]) // 2, (wanted[1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]
