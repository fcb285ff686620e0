"""Backbones by name."""

from collections.abc import Callable
from typing import Any

from moeapps.errors import UnknownNameError
from moeapps.lazy import import_part
from moeapps.vision.backbones.branches import Parts

_CIFAR = "moeapps.vision.backbones.cifar_resnet:cifar_resnet"
_IMAGENET = "moeapps.vision.backbones.imagenet_resnet:imagenet_resnet"
BACKBONES: dict[str, tuple[str, Any]] = {
    **{f"resnet{depth}": (_CIFAR, depth) for depth in (8, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}": (_IMAGENET, depth) for depth in (10, 18, 34, 50, 101, 152)},
    "resnext50": (_IMAGENET, "50x4d"),
}
"""Name to builder and size. Depth 6 n + 2 is for small images, the others are for large ones."""


def make_parts(
    name: str, *, num_experts: int, reduce_width: bool, in_channels: int, **options: Any
) -> Parts:
    """Trunk and bodies of a backbone.

    Args:
        name: One of :data:`BACKBONES`, or ``timm/NAME`` for any model of timm that can be split.
        num_experts: Bodies.
        reduce_width: Narrower branches, where the backbone has them.
        in_channels: Channels of an image.
        **options: Further options of the builder.

    Raises:
        UnknownNameError: With the closest names.

    Example:
        >>> make_parts("resnet20", num_experts=2, reduce_width=False, in_channels=1).features
        64
    """
    common: dict[str, Any] = {"num_experts": num_experts, "in_channels": in_channels, **options}
    if name.startswith("timm/"):
        from moeapps.vision.backbones.timm_branches import timm_parts

        return timm_parts(name.removeprefix("timm/"), **common)
    if name not in BACKBONES:
        raise UnknownNameError("backbone", name, BACKBONES, hint="Or timm/NAME for one of timm's.")
    target, size = BACKBONES[name]
    module, _, attribute = target.partition(":")
    build: Callable[..., Parts] = getattr(import_part(module), attribute)
    return build(size, reduce_width=reduce_width, **common)
