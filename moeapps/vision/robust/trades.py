"""Adversaries and losses of training against attacks: TRADES for the network and for the router."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.vision.robust.attacks import frozen, project

Target = Literal["both", "network", "router"]
RouterObjective = Literal["label_mod", "groups", "trades"]
ROUTER_OBJECTIVES: tuple[RouterObjective, ...] = ("label_mod", "groups", "trades")


def divergence(outputs: Tensor, clean: Tensor) -> Tensor:
    r"""Sum over rows of :math:`KL(\mathrm{softmax}(clean) \,\|\, \mathrm{softmax}(outputs))`.

    Example:
        >>> divergence(torch.zeros(3, 2), torch.zeros(3, 2)).item()
        0.0
    """
    return F.kl_div(
        outputs.log_softmax(-1), clean.log_softmax(-1), reduction="sum", log_target=True
    )


def adversary(
    model: Any,
    images: Tensor,
    *,
    epsilon: float = 8 / 255,
    step: float | None = None,
    steps: int = 2,
    route: Any = "hard",
    target: Target = "both",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Images on which network and router disagree most with themselves on the clean ones.

    .. math:: x' = \arg\max\; KL(f(x) \,\|\, f(x')) + KL(r(x) \,\|\, r(x'))

    Args:
        model: Network with a router, or without.
        images: Clean images, 0 to 1.
        epsilon: Largest change of a pixel.
        step: Of each ascent; 5/8 of epsilon if None.
        steps: Ascents.
        route: How the network's output is computed; the attack follows it.
        target: Whose divergence grows: of ``"both"``, the ``"network"`` or the ``"router"``.
        generator: Of the start, a deviation of 0.001.

    Returns:
        Images; model and modes are as before.
    """
    step = 5 / 8 * epsilon if step is None else step
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    with frozen(model):

        def outputs(x: Tensor) -> list[Tensor]:
            if target == "router":
                return [model.scores(x)]
            if target == "network":
                return [model(x, route=route)]
            return list(model(x, route=route, return_scores=True))

        with torch.no_grad():
            clean = outputs(images)
        x = images + 0.001 * noise
        for _ in range(steps):
            x = x.detach().requires_grad_()
            parts = [divergence(m, c) for m, c in zip(outputs(x), clean, strict=True)]
            total = torch.stack(parts).sum()
            (slope,) = torch.autograd.grad(total, x)
            x = project(x + step * slope.sign(), images, epsilon)
    return x


def trades_loss(logits: Tensor, moved: Tensor, labels: Tensor, beta: float = 6.0) -> Tensor:
    r"""Cross-entropy on clean images, and what attacks change.

    .. math:: CE(f(x), y) + \frac{\beta}{B} \sum KL(f(x) \,\|\, f(x'))

    Args:
        logits: Of the clean images, ``[B, C]``.
        moved: Of the attacked ones.
        labels: ``[B]``.
        beta: Weight of the divergence.

    References:
        Zhang et al., *Theoretically Principled Trade-off between Robustness and Accuracy*,
        ICML 2019.

    Example:
        >>> trades_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])).item()
        0.693...
    """
    return F.cross_entropy(logits, labels) + beta / len(logits) * divergence(moved, logits)


def group_loss(
    scores: Tensor, moved: Tensor, target: Tensor, *, alpha: float = 6.0, beta: float = 6.0
) -> Tensor:
    r"""A router that predicts the group of the label, and keeps to it under attack.

    .. math:: \alpha\, CE(r(x), g_y) + \frac{\beta}{B} \sum KL(r(x) \,\|\, r(x'))

    The released code has :math:`g_y = y \bmod N`.

    Args:
        scores: Of the clean images, ``[B, L, N]``; all routers have the same target.
        moved: Of the attacked ones.
        target: Group of each image's label, ``[B]``.
        alpha: Weight of the cross-entropy.
        beta: Weight of the divergence.
    """
    wanted = target.unsqueeze(1).expand(scores.shape[:2])
    loss = alpha * F.cross_entropy(scores.flatten(0, 1), wanted.flatten())
    return loss + beta / len(scores) * divergence(moved, scores)


def routed_trades_loss(
    model: Any, images: Tensor, adversarial: Tensor, labels: Tensor, beta: float = 6.0
) -> Tensor:
    r"""A router that minimises the loss of the network it routes, straight through the choice.

    .. math:: CE(f(x), y) + \frac{\beta}{B} \sum \big(KL(f(x) \,\|\, f(x')) +
        KL(r(x) \,\|\, r(x'))\big)
    """
    logits, scores = model(images, return_scores=True)
    moved, moved_scores = model(adversarial, return_scores=True)
    stable = beta / len(images) * divergence(moved_scores, scores)
    return trades_loss(logits, moved, labels, beta) + stable
