"""SADE: experts for three test distributions, weighed on unlabelled test images."""

# ruff: noqa: PT028  # test_time_weights is no test

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.longtail.aggregate import WeightedLogits, answered
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.losses import logit_adjusted_cross_entropy
from moeapps.vision.longtail.schedules import CIFAR, SGD

Views = Sequence[Tensor] | Mapping[str, Tensor]


class SADE(LongTailModel):
    r"""Three experts: for the training distribution, for a uniform one, and for its inverse.

    .. math::
        L = \mathrm{CE}(z_1) + \mathrm{CE}(z_2 + \log \pi)
          + \mathrm{CE}(z_3 + \log \pi - \tau \log \tilde\pi)

    where :math:`\tilde\pi` is :math:`\pi` with its sorted values reversed. At test time
    `test_time_weights` finds out which experts fit.

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class.
        tau: How far the third expert leans to rare classes.
        num_experts: Always 3.
        reduce_width: The published CIFAR-10-LT runs use full width with learning rate 0.05.
        **common: Options of every model, see `LongTailModel`.

    Raises:
        ArgumentError: Other than three experts.

    Notes:
        Departures from the paper: no 1e-9 inside the logarithms, which every class with an image
        can do without.

    References:
        Zhang et al., *Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
        Long-Tailed Recognition*, NeurIPS 2022.

    Example:
        >>> model = SADE(4, [40, 20, 10, 5], backbone="resnet8")
        >>> output, aux = model(torch.randn(2, 3, 32, 32), return_aux=True)
        >>> list(model.loss_parts(aux, torch.tensor([0, 3]), epoch=1))
        ['forward', 'uniform', 'backward']
    """

    schedules: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar": CIFAR,
        "cifar10": CIFAR | {"lr": 0.05},
        "imagenet": SGD
        | {"epochs": 180, "batch_size": 64, "lr": 0.025, "weight_decay": 5e-4, "cosine": True},
    }
    schedule = schedules["cifar"]

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        tau: float = 2.0,
        num_experts: int = 3,
        reduce_width: bool = True,
        **common: Any,
    ) -> None:
        if num_experts != 3:
            raise ArgumentError(
                f"num_experts={num_experts}, but SADE is defined for 3: the training, a uniform "
                "and an inverse distribution. Use balpoe for any number of experts."
            )
        super().__init__(
            num_classes, class_counts, num_experts=3, reduce_width=reduce_width, **common
        )
        self.tau = tau
        self.lam = [0.0, 1.0, 1 + tau]  # exact for exponentially falling counts

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """One cross-entropy per expert."""
        first, second, third = aux["logits"].unbind(1)
        prior = self.log_prior
        tail = third - self.tau * reversed_prior(prior)
        return {
            "forward": F.cross_entropy(first, target),
            "uniform": logit_adjusted_cross_entropy(second, target, prior),
            "backward": logit_adjusted_cross_entropy(tail, target, prior),
        }


def reversed_prior(prior: Tensor) -> Tensor:
    r"""The same values, the largest given to the class that had the smallest, and so on.

    Example:
        >>> reversed_prior(torch.tensor([0.2, 0.5, 0.3]))
        tensor([0.5000, 0.2000, 0.3000])
    """
    order = prior.argsort(stable=True)
    return torch.empty_like(prior).scatter(0, order, prior[order.flip(0)])


def test_time_weights(
    model: LongTailModel,
    views: Iterable[Views],
    *,
    epochs: int = 5,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    stop_below: float = 0.05,
    progress: Callable[[int, list[float]], None] | None = None,
) -> WeightedLogits:
    r"""Learn, without labels, how to weigh the experts for the images at hand.

    .. math::
        \max_v\ \mathrm{mean}\, \cos(p(x'), p(x'')), \qquad
        p(x) = \mathrm{softmax}\Big(\sum_k \mathrm{softmax}(v)_k\, z_k(x)\Big)

    over two random views of every test image: an expert that knows an image's class says the same
    of both. The model itself is not trained, and stays in the mode it was in.

    Args:
        model: Any model of several experts.
        views: Batches of two views, as pairs of tensors ``[B, C, H, W]`` or as a mapping with
            ``image`` and ``strong``; gone through once per epoch. A loader whose sampler has
            ``set_epoch`` draws other views each time.
        epochs: At most so many; at least 1.
        lr: Of SGD with Nesterov momentum.
        momentum: Likewise.
        weight_decay: Likewise.
        stop_below: Stop after an epoch in which some weight fell below this.
        progress: Called after every epoch with its number from 1 and the weights.

    Returns:
        The aggregator: ``model.aggregate = test_time_weights(model, loader)``.

    Raises:
        ArgumentError: No images, or none for which an expert gives finite logits.

    Notes:
        Departures from the paper: v starts at 0, not at 1/3, which is the same under softmax.

    Example:
        >>> model = SADE(4, [40, 20, 10, 5], backbone="resnet8")
        >>> pairs = [(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32))]
        >>> weights = test_time_weights(model, pairs, epochs=1)
        >>> model.aggregate = weights
    """
    learned = WeightedLogits([1.0] * model.num_experts)
    device = next(model.parameters()).device
    learned.to(device)
    optimizer = torch.optim.SGD(
        learned.parameters(),
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
    )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for epoch in range(1, epochs + 1):
            _set_epoch(views, epoch - 1)
            seen = 0
            for batch in views:
                logits = torch.stack([_expert_logits(model, v.to(device)) for v in _pair(batch)])
                known = answered(logits).any(-1).all(0)  # without what no expert could answer
                if not known.any():
                    continue
                with torch.enable_grad():
                    first, second = (learned(z).softmax(-1) for z in logits[:, known])
                    loss = -F.cosine_similarity(first, second, -1).mean()
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                seen += len(first)
            if not seen:
                raise ArgumentError(
                    f"test_time_weights found no image that an expert could answer in epoch {epoch}"
                    "; expected two views of each test image. Give a loader that can be gone "
                    "through once per epoch, and check the images for NaN."
                )
            weights = learned.weights.tolist()
            if progress is not None:
                progress(epoch, weights)
            if min(weights) < stop_below:
                break
    finally:
        for module, training in modes:
            module.training = training
    return learned.requires_grad_(False)


test_time_weights.__test__ = False  # type: ignore[attr-defined]  # for pytest


def _set_epoch(views: Iterable[Views], epoch: int) -> None:
    """As Lightning does for the loaders of training."""
    sampler = getattr(getattr(views, "batch_sampler", None), "sampler", None)
    if sampler is not None and hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)


def _expert_logits(model: nn.Module, images: Tensor) -> Tensor:
    """``[B, K, C]``, without gradient."""
    with torch.no_grad():
        logits: Tensor = model(images, return_aux=True)[1]["logits"]
    return logits


def _pair(batch: Views) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        return batch["image"], batch["strong"]
    first, second, *_ = batch
    return first, second
