"""Attacks within a cube around each image: projected gradient ascent on network and router."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError

Objective = Callable[[Tensor, Tensor], Tensor]
"""From images ``[R, C, H, W]`` and their rows ``[R]`` to what is to become large, ``[R]``."""
Ascend = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""From a start, the clean images, their labels and the number of the start to attacked images, and
the rows that are still right."""
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

    def value(x: Tensor, rows: Tensor) -> Tensor:
        logits, scores = model(x, route=route, return_scores=True)
        if goal == "margin":
            return margin(logits, labels[rows])
        if goal == "router":
            return away(scores, clean[rows])
        wrong = F.cross_entropy(logits, labels[rows], reduction="none")
        return wrong + away(scores, clean[rows]) if goal == "joint" else wrong

    experts = int(model.num_experts)  # type: ignore[arg-type]
    fallback = getattr(model, "fallback", None) or 0.0

    def through_expert(x: Tensor, rows: Tensor) -> Tensor:
        expert = run % experts
        logits, scores = model(x, route=expert, return_scores=True)
        wrong = margin(logits, labels[rows]).clamp(max=_ENOUGH)
        if scores.shape[1] == 0 or experts == 1:
            return wrong
        target = torch.full(scores.shape[:2], expert, device=x.device)
        lead = -margin(scores.flatten(0, 1), target.flatten()).view(target.shape)
        return wrong + lead.clamp(max=fallback + 0.1 * _ENOUGH).mean(1)

    def nobody(x: Tensor, rows: Tensor) -> Tensor:
        logits, scores = model(x, route="mixture", return_scores=True)
        first, second = scores.topk(2, -1).values.unbind(-1)
        lead = (first - second).clamp(min=0.9 * fallback).mean(1)
        return margin(logits, labels[rows]).clamp(max=_ENOUGH) - lead

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
        step = self.epsilon / 4 if self.step is None else self.step

        def ascend(x: Tensor, clean: Tensor, y: Tensor, run: int) -> tuple[Tensor, Tensor]:
            found, rows = x.clone(), torch.arange(len(x), device=x.device)
            grows = objective(model, self.goal, self.route, clean, y, run)
            for _ in range(self.steps):
                slope = value_and_gradient(grows, x, rows)[1]
                x = project(x + step * slope.sign(), clean[rows], self.epsilon)
                found[rows] = x
                keep = right_rows(model, x, y[rows])
                rows, x = rows[keep], x[keep]
                if not len(rows):
                    break
            return found, rows

        return from_starts(ascend, model, images, labels, self.epsilon, self.restarts, seed)


def from_starts(
    ascend: Ascend,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    restarts: int,
    seed: int,
) -> Tensor:
    """Attack from one random start after another what the model still gets right."""
    check_pixels(images)
    with frozen(model):
        images, labels = (
            images.clone(),
            labels.clone(),
        )  # may be of inference mode
        generator = torch.Generator(images.device).manual_seed(seed)
        found, left = images.clone(), right_rows(model, images, labels)
        for run in range(restarts):
            start = start_near(images, epsilon, generator)
            if len(left):
                found[left], keep = ascend(start[left], images[left], labels[left], run)
                left = left[keep]
        return found


def value_and_gradient(grows: Objective, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The objective of each image, and its gradient."""
    x = x.detach().requires_grad_()
    value = grows(x, rows)
    # An image that reached every sufficient size no longer depends on its pixels.
    (slope,) = torch.autograd.grad(value.sum(), x) if value.requires_grad else (x.new_zeros(()),)
    return value.detach(), slope.expand_as(x)


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
