"""Attacks within a cube around each image: projected gradient ascent on network and router."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError

Objective = Callable[[Tensor], Tensor]
"""From images ``[B, C, H, W]`` to what is to become large, ``[B]``."""
Goal = Literal["ce", "margin", "router", "joint", "forced", "undecided"]
GOALS: tuple[Goal, ...] = ("ce", "margin", "router", "joint", "forced", "undecided")
_ENOUGH = 1.0  # a margin of logits that needs no further pushing


class Attack(Protocol):
    """Anything that finds images near the given ones which the network gets wrong."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Images ``[B, C, H, W]``, one for each given one."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, no parameter wants a gradient, and gradients work."""
    modes = {module: module.training for module in model.modules()}
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus that of the label, ``[B]``: positive when wrong.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
        [-1.0]
    """
    right = F.one_hot(labels, logits.shape[-1]).bool()
    return logits.masked_fill(right, -torch.inf).amax(-1) - logits.masked_fill(
        ~right, -torch.inf
    ).amax(-1)


def away(scores: Tensor, route: Tensor) -> Tensor:
    """Cross-entropy of scores ``[B, L, N]`` to routes ``[B, L]``, summed over the routers."""
    if scores.shape[1] == 0:
        return scores.new_zeros(len(scores))
    return F.cross_entropy(scores.flatten(0, 1), route.flatten(), reduction="none").view(
        route.shape
    ).sum(1)  # fmt: skip


def objective(
    model: nn.Module, goal: Goal, route: Any, images: Tensor, labels: Tensor, run: int = 0
) -> Objective:
    r"""What an attack pushes up, by name.

    Args:
        model: ``model(images, route=, return_scores=True)`` gives logits and scores.
        goal: ``"ce"`` :math:`-\log p_y`; ``"margin"`` :math:`\max_{j \ne y} z_j - z_y`;
            ``"router"`` cross-entropy of the routers to their decision on the clean image;
            ``"joint"`` the sum of ce and router; ``"forced"``: the margin behind expert ``run % N``
            and the lead of that expert at the routers, each up to a sufficient size;
            ``"undecided"``: the margin of all pathways together and a lead of nobody.
        route: How logits are computed: see `moe_conv.follow`. Forced and undecided have their own.
        images: Clean images.
        labels: Their labels.
        run: Number of the restart.
    """
    if goal in ("router", "joint"):
        with torch.no_grad():
            clean = model(images, return_scores=True)[1].argmax(-1)

    def value(x: Tensor) -> Tensor:
        logits, scores = model(x, route=route, return_scores=True)
        if goal == "ce":
            return F.cross_entropy(logits, labels, reduction="none")
        if goal == "margin":
            return margin(logits, labels)
        if goal == "router":
            return away(scores, clean)
        return F.cross_entropy(logits, labels, reduction="none") + away(scores, clean)

    experts = int(model.num_experts)  # type: ignore[arg-type]
    fallback = getattr(model, "fallback", None) or 0.0

    def through_expert(x: Tensor) -> Tensor:
        expert = run % experts
        logits, scores = model(x, route=expert, return_scores=True)
        wrong = margin(logits, labels).clamp(max=_ENOUGH)
        if scores.shape[1] == 0 or experts == 1:
            return wrong
        target = torch.full(scores.shape[:2], expert, device=x.device)
        lead = -margin(scores.flatten(0, 1), target.flatten()).view(target.shape)
        return wrong + lead.clamp(max=fallback + 0.1 * _ENOUGH).mean(1)

    def nobody(x: Tensor) -> Tensor:
        logits, scores = model(x, route="mixture", return_scores=True)
        first, second = scores.topk(2, -1).values.unbind(-1)
        lead = (first - second).clamp(min=0.9 * fallback).mean(1)
        return margin(logits, labels).clamp(max=_ENOUGH) - lead

    return {"forced": through_expert, "undecided": nobody}.get(goal, value)


@dataclass(frozen=True)
class PGD:
    r"""Projected gradient ascent with random starts.

    .. math:: x' \leftarrow \Pi_{[x - \epsilon, x + \epsilon] \cap [0, 1]}
        \big(x' + \eta\, \mathrm{sign}\, \nabla_{x'} g(x')\big)

    An image leaves the attack as soon as the network, routed as it is in use, gets it wrong.

    Args:
        epsilon: Largest change of a pixel.
        steps: Gradient steps of each start.
        step: :math:`\eta`; a quarter of epsilon if None.
        restarts: Random starts; with ``goal="forced"`` they take the experts in turn.
        goal: See `objective`.
        route: See `objective`.

    Shape:
        - images ``[B, C, H, W]`` from 0 to 1, labels ``[B]``; result as the images

    Raises:
        UnknownNameError: There is no such goal.
        ArgumentError: Numbers that cannot be, or images that are not between 0 and 1.

    References:
        Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018.

    Example:
        >>> from moeapps.vision.robust.dense_cnn import DenseCNN
        >>> model = DenseCNN(10, backbone="small_cnn", in_channels=1)
        >>> images = torch.rand(2, 1, 8, 8)
        >>> found = PGD(0.1, steps=3)(model, images, torch.tensor([0, 1]), seed=0)
        >>> bool(((found - images).abs() <= 0.1 + 1e-6).all())
        True
    """

    epsilon: float = 8 / 255
    steps: int = 20
    step: float | None = None
    restarts: int = 2
    goal: Goal = "ce"
    route: str = "hard"

    def __post_init__(self) -> None:
        check_budget(self.epsilon, self.steps, self.restarts, self.goal)

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0
    ) -> Tensor:
        """Attack every image that the model gets right."""
        check_pixels(images)
        with frozen(model):
            return self._run(model, images.clone(), labels.clone(), seed)

    def _run(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(images.device).manual_seed(seed)
        step = self.epsilon / 4 if self.step is None else self.step
        found = images.clone()
        left = right_rows(model, images, labels)
        for run in range(self.restarts):
            start = start_near(images, self.epsilon, generator)
            rows, x = left, start[left]
            for _ in range(self.steps):
                if not len(rows):
                    break
                clean, y = images[rows], labels[rows]
                grows = objective(model, self.goal, self.route, clean, y, run)
                x = project(x + step * gradient(grows, x).sign(), clean, self.epsilon)
                found[rows] = x
                keep = right_rows(model, x, y)
                rows, x = rows[keep], x[keep]
            left = rows
        return found


def value_and_gradient(grows: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """The objective of each image, and its gradient."""
    x = x.detach().requires_grad_()
    value = grows(x)
    # An image that reached every sufficient size no longer depends on its pixels.
    (slope,) = torch.autograd.grad(value.sum(), x) if value.requires_grad else (x.new_zeros(()),)
    return value.detach(), slope.expand_as(x)


def gradient(grows: Objective, x: Tensor) -> Tensor:
    """The objective's gradient."""
    return value_and_gradient(grows, x)[1]


def project(x: Tensor, clean: Tensor, epsilon: float) -> Tensor:
    """The nearest image within epsilon of the clean one and between 0 and 1."""
    return torch.minimum(torch.maximum(x, clean - epsilon), clean + epsilon).clamp(0, 1).detach()


def start_near(images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """A uniformly random image of the cube."""
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return (images + epsilon * (2 * noise.to(images.dtype) - 1)).clamp(0, 1)


def right_rows(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Rows that the network, routed as it is in use, gets right."""
    with torch.no_grad():
        return (model(images).argmax(-1) == labels).nonzero().squeeze(1)


def check_budget(epsilon: float, steps: int, restarts: int, goal: str) -> None:
    """Raise unless an attack of these numbers exists."""
    if goal not in GOALS:
        raise UnknownNameError("goal of an attack", goal, GOALS)
    if epsilon <= 0 or steps < 1 or restarts < 1:
        raise ArgumentError(
            f"epsilon={epsilon}, steps={steps}, restarts={restarts}: expected a positive epsilon "
            "and at least one step and start."
        )


def check_pixels(images: Tensor) -> None:
    """Raise unless pixels are between 0 and 1."""
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise ArgumentError(
            f"Pixels range from {float(images.min()):.3g} to {float(images.max()):.3g}; attacks "
            "expect 0 to 1. Leave normalisation to the network (mean=, std=)."
        )
