"""Branches for serving: BatchNorm inside the convolutions, experts side by side as groups."""

import copy
from collections.abc import Sequence
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from moeapps.errors import ArgumentError
from moeapps.vision.backbones.branches import Branches, Parts, check_images
from moeapps.vision.backbones.cifar_resnet import BasicBlock, Pool
from moeapps.vision.backbones.imagenet_resnet import Residual

Layer = TypeVar("Layer", bound=nn.Module)
_SHARED = (nn.ReLU, nn.MaxPool2d, Pool)


def folded(branches: Branches) -> Branches:
    """A copy in eval mode whose BatchNorms are part of the convolutions before them.

    Its experts still run one by one, as an early exit needs.
    """
    return Branches(
        Parts(
            _fused(branches.trunk),
            [_fused(body) for body in branches.bodies],
            branches.features,
            branches.in_channels,
            image_size=branches.image_size,
        ),
        copy.deepcopy(branches.heads).eval(),
    )


def _fused(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module).eval()
    if not any(isinstance(each, nn.BatchNorm2d) for each in module.modules()):
        return module  # a ViT has nothing to fold, and need not be traceable
    try:
        folded_in: nn.Module = fuse(module, inplace=True)
    except fx.proxy.TraceError as error:
        raise ArgumentError(
            f"a {type(module).__name__} cannot be folded, as its graph cannot be traced "
            f"({error}). Serve the model as it is."
        ) from error
    return folded_in


def can_group(branches: Branches) -> bool:
    """Whether `GroupedBranches` is for these: several experts of a ResNet of this library."""
    ours = (nn.Sequential, BasicBlock, Residual, nn.Conv2d, nn.BatchNorm2d, *_SHARED)
    modules = branches.bodies[0].modules()
    return branches.num_experts > 1 and all(isinstance(m, ours) for m in modules)


class GroupedBranches(nn.Module):
    """All experts in one pass: every convolution has a group (or several) per expert.

    A third of the calls for three experts, which pays for small batches. No expert can be left out.

    Args:
        branches: With bodies of convolutions, BatchNorm and ReLU, as the ResNets have them.

    Shape:
        - images ``[B, C, H, W]``; logits ``[B, K, classes]`` and features ``[B, K, D]``

    Raises:
        ArgumentError: The bodies hold something else; names it.

    Notes:
        For inference only: BatchNorm is folded.

    Example:
        >>> from moeapps.vision.backbones.cifar_resnet import cifar_resnet
        >>> heads = [nn.Linear(64, 5) for _ in range(3)]
        >>> branches = Branches(cifar_resnet(8, num_experts=3), heads).eval()
        >>> images = torch.randn(2, 3, 16, 16)
        >>> torch.testing.assert_close(GroupedBranches(branches)(images), branches(images))
    """

    def __init__(self, branches: Branches) -> None:
        super().__init__()
        self.features, self.in_channels = branches.features, branches.in_channels
        self.num_experts = branches.num_experts
        self.trunk = _fused(branches.trunk)
        self.body = _fused(side_by_side([*branches.bodies]))
        self.heads = copy.deepcopy(branches.heads).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of all experts."""
        check_images(images, self.in_channels)
        hidden = self.trunk(images).repeat(1, self.num_experts, 1, 1)
        features = self.body(hidden).unflatten(1, (self.num_experts, self.features))
        logits = [head(f) for head, f in zip(self.heads, features.unbind(1), strict=True)]
        return torch.stack(logits, 1), features

    def share(self, images: Tensor) -> NoReturn:
        """Refuse an early exit.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError(
            "grouped experts run together, so an early exit cannot skip any. Set aggregate before "
            "fuse_for_inference(), or fuse with grouped=False."
        )


def side_by_side(modules: Sequence[nn.Module]) -> nn.Module:
    """Equal modules as one, whose channels are those of the modules one after another.

    Raises:
        ArgumentError: It is not known how to do this for a module inside.
    """
    first = modules[0]
    if isinstance(first, nn.Conv2d):
        return _convolution([m for m in modules if isinstance(m, nn.Conv2d)])
    if isinstance(first, nn.BatchNorm2d):
        return _batch_norm([m for m in modules if isinstance(m, nn.BatchNorm2d)])
    if isinstance(first, _SHARED):
        return copy.deepcopy(first)
    if not isinstance(first, nn.Sequential | BasicBlock | Residual):
        raise ArgumentError(
            f"experts with a {type(first).__name__} cannot run side by side. Use grouped=False, or "
            "a ResNet."
        )
    together = copy.deepcopy(first)
    for name, _ in first.named_children():
        setattr(together, name, side_by_side([m.get_submodule(name) for m in modules]))
    if isinstance(together, BasicBlock):
        together.groups = len(modules)
    return together


def _convolution(modules: Sequence[nn.Conv2d]) -> nn.Conv2d:
    first, number = modules[0], len(modules)
    together = nn.Conv2d(
        number * first.in_channels,
        number * first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        number * first.groups,
        bias=first.bias is not None,
    )
    return _stacked(together, modules)


def _batch_norm(modules: Sequence[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    together = nn.BatchNorm2d(len(modules) * modules[0].num_features, modules[0].eps)
    return _stacked(together, modules)


def _stacked(together: Layer, modules: Sequence[nn.Module]) -> Layer:
    states = [module.state_dict() for module in modules]
    joined = {
        name: torch.cat([state[name] for state in states]) if value.ndim else value
        for name, value in states[0].items()
    }
    together.load_state_dict(joined)
    return together.to(next(modules[0].parameters()))
