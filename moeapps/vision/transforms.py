"""Weak and strong views of images, and the constants that bring pixels to mean 0 and deviation 1.

Two kinds. ``batched(name)`` gives a function of a whole batch of small images in memory,
``(images, generator) -> images``, from 0 to 1 and *not* yet normalised by its mean and deviation.
``per_image(name)`` gives a torchvision v2 transform of one image, for files of any size.

========================= ======================================================================
``cifar-weak``            crop 32 of 40, flip, rotation 15 degrees
``cifar-strong``          crop, flip, AutoAugment's CIFAR-10 policy, one hole of 16 x 16 (MDCS)
``sade-view``             crop, colour jitter, grey, blur, flip (SADE at test time)
``pair-digits-weak``      shift 0.7 pixels, rotation 5 degrees
``pair-digits-strong``    shift 1.2, rotation 15, scale 15 %, hole of a third, contrast, noise
``imagenet-weak``         crop of any size to 224, flip, colour jitter (per image)
``imagenet-strong``       the same, then RandAugment n = 2, m = 10 (per image)
``imagenet-test``         resize to 256, centre 224 (per image)
``none``                  nothing
========================= ======================================================================
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision import batch_colour as colour
from moeapps.vision.auto_augment import cifar_policy
from moeapps.vision.batch_geometry import cutout, rotation, shift_and_warp, uniform, whole

Batched = Callable[[Tensor, torch.Generator | None], Tensor]


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, of pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """``(images - mean) / std`` for ``[..., C, H, W]``.

        Raises:
            ArgumentError: Other channels than those of the mean, unless that has a single one, or
                whole numbers.
        """
        channels = images.shape[-3] if images.ndim > 2 else 0
        if len(self.mean) not in (1, channels) or not images.is_floating_point():
            raise ArgumentError(
                f"images are {images.dtype} {tuple(images.shape)}, but this normalisation is for "
                f"floats [..., {len(self.mean)}, H, W]. Choose one with a single mean, 'half' or "
                "'none', for other channels."
            )
        mean, std = (images.new_tensor(part)[:, None, None] for part in self)
        return (images - mean) / std


NORMALISATION = {
    "cifar": Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inaturalist": Normalisation((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
    "mnist": Normalisation((0.1307,), (0.3081,)),
    "half": Normalisation((0.5,), (0.5,)),
    "none": Normalisation((0.0,), (1.0,)),
}
"""By name: ``half`` maps 0..1 to -1..1 for any number of channels, ``none`` changes nothing."""


# ------------------------------------------------------------------------------ batches in memory


def cifar_weak(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    padding: int = 4,
    degrees: float = 15.0,
) -> Tensor:
    """Random crop of the padded image, random flip, random rotation: one sampling for all three.

    Args:
        images: ``[B, C, H, W]``.
        generator: Of all draws.
        padding: Pixels of black on each side.
        degrees: Largest rotation; 0 is the baseline of the LDAM paper.

    Example:
        >>> images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> one, same = (cifar_weak(images, torch.Generator().manual_seed(1)) for _ in range(2))
        >>> tuple(one.shape), torch.equal(one, same)
        ((4, 3, 32, 32), True)
    """
    count = len(images)
    moved = [whole(count, -padding, padding, generator) for _ in range(2)]
    flip = uniform(count, 0, 1, generator) < 0.5
    turn = rotation(uniform(count, -degrees, degrees, generator)) if degrees else None
    shift = (moved[0], moved[1])
    return shift_and_warp(images, shift=shift, flip=flip, matrix=turn, cropped=True)


def cifar_strong(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    padding: int = 4,
    hole: int = 16,
    fill: Normalisation = NORMALISATION["cifar"],
) -> Tensor:
    """Crop and flip, then AutoAugment's CIFAR-10 policy, then one hole: the strong view of MDCS.

    The hole has the mean colour, which is 0 after normalisation, as published.

    Args:
        images: ``[B, 3 | 1, H, W]`` from 0 to 1.
        generator: Of all draws.
        padding: Pixels of black on each side before the crop.
        hole: Side of the hole.
        fill: Its colour is the mean of this.
    """
    images = cifar_weak(images, generator, padding=padding, degrees=0)
    mean = images.new_tensor(fill.mean)[:, None, None]
    if images.shape[1] != len(mean):
        mean = mean.mean(0, keepdim=True)
    return cutout(cifar_policy(images, generator), hole, generator, mean)


def sade_view(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A view for SADE's test-time aggregation: crop, colour jitter, grey, blur, flip.

    The four parts of the jitter come in one order for the whole batch, drawn anew each time.
    """
    count = len(images)

    def some(share: float, changed: Tensor) -> Tensor:
        chosen = (uniform(count, 0, 1, generator) < share).to(images.device)
        return torch.where(chosen[:, None, None, None], changed, images)

    moved = [whole(count, -4, 4, generator) for _ in range(2)]
    flip = uniform(count, 0, 1, generator) < 0.5
    images = shift_and_warp(images, shift=(moved[0], moved[1]), flip=flip)
    jittered = images
    steps = (colour.brightness, colour.contrast, colour.saturation)
    device = generator.device if generator is not None else None
    for step in torch.randperm(4, generator=generator, device=device).tolist():
        if step == 3:
            jittered = colour.hue(jittered, uniform(count, -0.1, 0.1, generator))
        else:
            jittered = steps[step](jittered, uniform(count, 0.6, 1.4, generator))
    images = some(0.8, jittered)
    images = some(0.2, colour.luma(images).expand_as(images))
    return some(0.2, colour.gaussian_blur(images, uniform(count, 0.1, 2.0, generator)))


def pair_digits_weak(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Shift by at most 0.7 pixels along each axis, rotation by at most 5 degrees."""
    count = len(images)
    moved = [uniform(count, -0.7, 0.7, generator) for _ in range(2)]
    turn = rotation(uniform(count, -5, 5, generator))
    return shift_and_warp(images, shift=(moved[0], moved[1]), matrix=turn, mode="bilinear")


def pair_digits_strong(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Shift 1.2 pixels, rotation 15 degrees, scale and contrast, a hole, noise of 0.1.

    Scale is within 15 %, contrast within 30 %, the hole a square of a third of the height.
    """
    count = len(images)
    moved = [uniform(count, -1.2, 1.2, generator) for _ in range(2)]
    turn = rotation(uniform(count, -15, 15, generator), uniform(count, 0.85, 1.15, generator))
    images = shift_and_warp(images, shift=(moved[0], moved[1]), matrix=turn, mode="bilinear")
    mean = images.mean((1, 2, 3), keepdim=True)
    factor = uniform(count, 0.7, 1.3, generator).to(images)[:, None, None, None]
    images = mean + factor * (images - mean)
    images = cutout(images, math.ceil(images.shape[2] / 3), generator)
    device = generator.device if generator is not None else None
    noise = torch.randn(images.shape, generator=generator, device=device)
    return images + 0.1 * noise.to(images)


def _unchanged(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return images


BATCHED: dict[str, Batched] = {
    "cifar-weak": cifar_weak,
    "cifar-strong": cifar_strong,
    "sade-view": sade_view,
    "pair-digits-weak": pair_digits_weak,
    "pair-digits-strong": pair_digits_strong,
    "none": _unchanged,
}


def batched(name: str) -> Batched:
    """The transform of batches of a name.

    Raises:
        UnknownNameError: With the closest names.
    """
    if name not in BATCHED:
        raise UnknownNameError("transform of batches", name, BATCHED)
    return BATCHED[name]


# --------------------------------------------------------------------------------- single images


def per_image(
    name: str, normalisation: Normalisation | str | None = None
) -> Callable[[Any], Tensor]:
    """A torchvision v2 transform of one image, ``uint8 [C, H, W]`` or Pillow, to float32.

    Args:
        name: ``"cifar-weak"``, ``"cifar-strong"``, ``"sade-view"``, ``"imagenet-weak"``,
            ``"imagenet-strong"``, ``"imagenet-test"`` or ``"none"``.
        normalisation: One, its name, or None for that of the transform's own data.

    Raises:
        UnknownNameError: With the closest names.
    """
    from torchvision.transforms import v2

    if isinstance(normalisation, str):
        if normalisation not in NORMALISATION:
            raise UnknownNameError("normalisation", normalisation, NORMALISATION)
        normalisation = NORMALISATION[normalisation]
    makers = {
        "cifar-weak": _image_cifar_weak,
        "cifar-strong": _image_cifar_strong,
        "sade-view": _image_sade_view,
        "imagenet-weak": _image_imagenet_weak,
        "imagenet-strong": _image_imagenet_strong,
        "imagenet-test": _image_imagenet_test,
        "none": lambda v2: ([], []),
    }
    if name not in makers:
        raise UnknownNameError("transform of images", name, makers)
    before, after = makers[name](v2)
    own = "imagenet" if name.startswith("imagenet") else "none" if name == "none" else "cifar"
    return v2.Compose(
        [
            v2.ToImage(),
            *before,
            v2.ToDtype(torch.float32, scale=True),
            normalisation or NORMALISATION[own],
            *after,
            v2.ToPureTensor(),
        ]
    )


def _image_cifar_weak(v2: Any) -> tuple[list[Any], list[Any]]:
    return [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(15)], []


def _image_cifar_strong(v2: Any) -> tuple[list[Any], list[Any]]:
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    return [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), policy], [_hole]


def _hole(image: Tensor) -> Tensor:
    """One hole of half the height, from the global generator."""
    return cutout(image[None], image.shape[-2] // 2)[0]


def _image_sade_view(v2: Any) -> tuple[list[Any], list[Any]]:
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    blur = v2.GaussianBlur(9, sigma=(0.1, 2.0))
    steps = [v2.RandomCrop(32, padding=4), v2.RandomApply([jitter], 0.8), v2.RandomGrayscale(0.2)]
    return [*steps, v2.RandomApply([blur], 0.2), v2.RandomHorizontalFlip()], []


def _image_imagenet_weak(v2: Any) -> tuple[list[Any], list[Any]]:
    crop = v2.RandomResizedCrop(224, antialias=True)
    return [crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0)], []


def _image_imagenet_strong(v2: Any) -> tuple[list[Any], list[Any]]:
    from timm.data.auto_augment import rand_augment_transform

    mean = tuple(round(255 * part) for part in NORMALISATION["imagenet"].mean)
    augment = rand_augment_transform(
        "rand-n2-m10-mstd0.5", {"translate_const": int(224 * 0.45), "img_mean": mean}
    )
    weak, _ = _image_imagenet_weak(v2)
    return [*weak, v2.ToPILImage(), augment, v2.ToImage()], []


def _image_imagenet_test(v2: Any) -> tuple[list[Any], list[Any]]:
    return [v2.Resize(256, antialias=True), v2.CenterCrop(224)], []


class TwoView:
    """Two transforms of one image: ``{"image": weak view, "strong": strong view}``.

    Args:
        weak: Transform of the first view.
        strong: Transform of the second view.

    Example:
        >>> TwoView(lambda image: image, lambda image: -image)(torch.tensor(1.0))
        {'image': tensor(1.), 'strong': tensor(-1.)}
    """

    def __init__(self, weak: Callable[[Any], Tensor], strong: Callable[[Any], Tensor]) -> None:
        self.weak = weak
        self.strong = strong

    def __call__(self, image: Any) -> dict[str, Tensor]:
        """Both views."""
        return {"image": self.weak(image), "strong": self.strong(image)}
