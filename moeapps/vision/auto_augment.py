"""The AutoAugment policy found on CIFAR-10, for a batch at once.

Each image draws one of 25 pairs of operations. Images with the same operation are changed
together, each with its own strength, so the work is a loop over 14 operations and not over images.
Values are those of 8-bit images throughout, as in torchvision's version for one image.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.vision.batch_colour import brightness, contrast, saturation, sharpness
from moeapps.vision.batch_geometry import rotation, shift_and_warp, uniform, whole

# (operation, probability, level 0 to 9) twice.
POLICY = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("colour", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("colour", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("colour", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("colour", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("colour", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)


def cifar_policy(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Change each image by a random pair of operations.

    Args:
        images: ``[B, 1 | 3, H, W]`` from 0 to 1; rounded to 8 bits.
        generator: Of the pairs, whether each operation is done, and the signs.

    Returns:
        Images from 0 to 1 of the same shape.

    Raises:
        ArgumentError: Images of another shape or type, or with values beyond 0 and 1.

    References:
        Cubuk et al., *AutoAugment: Learning Augmentation Policies from Data*, CVPR 2019.

    Example:
        >>> images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> changed = cifar_policy(images, torch.Generator().manual_seed(1))
        >>> bool(0 <= changed.min() and changed.max() <= 1)
        True
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise ArgumentError(
            f"images are {images.dtype} {tuple(images.shape)}. Pass floats [B, 1 | 3, H, W]."
        )
    pixels = (images * 255).round()
    if not ((pixels >= 0) & (pixels <= 255)).all():  # NaN is neither
        raise ArgumentError(
            f"images reach from {images.min():g} to {images.max():g}. Pass values from 0 to 1, "
            "before any normalisation or noise."
        )
    count = len(images)
    pair = whole(count, 0, len(POLICY) - 1, generator)
    names = list(OPERATIONS)
    for turn in (0, 1):
        rows = [step[turn] for step in POLICY]
        kind = torch.tensor([names.index(name) for name, _, _ in rows], device=pair.device)[pair]
        chance = torch.tensor([p for _, p, _ in rows], device=pair.device)[pair]
        level = torch.tensor([float(level) for _, _, level in rows], device=pair.device)[pair]
        done = uniform(count, 0, 1, generator) < chance
        sign = 1.0 - 2.0 * (uniform(count, 0, 1, generator) < 0.5).float()
        kind = torch.where(done, kind, -1).to(images.device)
        level, sign = level.to(images.device), sign.to(images.device)
        for number, operation in enumerate(OPERATIONS.values()):
            chosen = (kind == number).nonzero()[:, 0]
            if len(chosen):
                changed = operation(pixels[chosen], level[chosen], sign[chosen])
                pixels.index_copy_(0, chosen, changed.floor())
    return pixels / 255


def _rotate(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return shift_and_warp(pixels, matrix=rotation(sign * 30 * level / 9))


def _shear_x(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _shear(pixels, sign * 0.3 * level / 9, row=0)


def _shear_y(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _shear(pixels, sign * 0.3 * level / 9, row=1)


def _shear(pixels: Tensor, slope: Tensor, row: int) -> Tensor:
    """Shear about the top left corner."""
    matrix = torch.eye(2, device=pixels.device).repeat(len(pixels), 1, 1)
    matrix[:, row, 1 - row] = slope
    # About the centre the same shear has a shift of the slope times half the other side.
    along, still = slope * pixels.shape[2 + row] / 2, torch.zeros_like(slope)
    return shift_and_warp(
        pixels, matrix=matrix, shift=(along, still) if row == 0 else (still, along)
    )


def _translate_x(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    distance = (150 / 331 * pixels.shape[3] * level / 9).floor()
    return shift_and_warp(pixels, shift=(-sign * distance, torch.zeros_like(distance)))


def _translate_y(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    distance = (150 / 331 * pixels.shape[2] * level / 9).floor()
    return shift_and_warp(pixels, shift=(torch.zeros_like(distance), -sign * distance))


def _factor(level: Tensor, sign: Tensor) -> Tensor:
    return 1 + sign * 0.9 * level / 9


def _brightness(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return brightness(pixels, _factor(level, sign), top=255)


def _colour(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return saturation(pixels, _factor(level, sign), top=255)


def _contrast(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return contrast(pixels, _factor(level, sign), top=255)


def _sharpness(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return sharpness(pixels, _factor(level, sign), top=255)


def _posterize(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    step = 2 ** (level * 4 / 9).round()[:, None, None, None]
    return (pixels / step).floor() * step


def _solarize(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    threshold = 255 * (1 - level / 9)[:, None, None, None]
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def _auto_contrast(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) / 255)
    return ((pixels - torch.where(flat, 0.0, low)) / scale).clamp(0, 255)


def _equalize(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Pillow's histogram equalisation: a channel of one value stays as it is."""
    values = pixels.flatten(2).long()
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=pixels.device)
    histogram.scatter_add_(2, values, torch.ones_like(values))
    below = histogram.cumsum(2)
    last = histogram.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    table = ((below + step // 2) // step.clamp_min(1)).clamp(0, 255)
    table = torch.cat([torch.zeros_like(last), table[..., :-1]], 2)
    mapped = torch.where(step > 0, table.gather(2, values), values)
    return mapped.reshape(pixels.shape).to(pixels.dtype)


def _invert(pixels: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return 255 - pixels


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
}
