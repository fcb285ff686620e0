"""RIDE's second stage: heads that decide whether an image needs another expert."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.early_exit import Sequential, running_mean


class ExpertAssignment(nn.Module):
    r"""Rule of an early exit: a small head after each expert but the last.

    .. math:: \text{go on} \iff w \cdot \big[\mathrm{top}_n(\bar z_{1..i})\ ;\
        \mathrm{ReLU}(V_i\, f_i / \lVert f_i \rVert)\big] + b > 0

    with the last layer ``w, b`` shared by all experts.

    Args:
        features: Width ``D`` of an expert's features.
        num_experts: ``K``.
        num_classes: ``C``.
        top_n: Largest mean logits that are read; 30 on CIFAR-100 (all, if there are fewer classes).
        hidden: Width of the layer on the features.

    Shape:
        - logits ``[A, k, C]`` of the first ``k`` experts, features ``[A, D]`` of the k-th -> bool
          ``[A]``

    Notes:
        Departures from the paper: none.

    References:
        Wang et al., *Long-tailed Recognition by Routing Diverse Distribution-Aware Experts*, ICLR
        2021.

    Example:
        >>> rule = ExpertAssignment(16, num_experts=3, num_classes=10)
        >>> rule(torch.randn(5, 2, 10), torch.randn(5, 16)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        *,
        num_experts: int,
        num_classes: int,
        top_n: int = 30,
        hidden: int = 16,
    ) -> None:
        super().__init__()
        if num_experts < 2:
            raise ArgumentError(
                "num_experts=1 leaves nothing to assign. Train at least two experts."
            )
        self.top_n = min(top_n, num_classes)
        self.project = nn.ModuleList(nn.Linear(features, hidden) for _ in range(num_experts - 1))
        self.decide = nn.Linear(self.top_n + hidden, 1)

    def score(self, logits: Tensor, features: Tensor) -> Tensor:
        """Log-odds ``[A]`` that another expert is needed."""
        top = running_mean(logits).topk(self.top_n, -1).values.to(features.dtype)
        seen = F.relu(self.project[logits.shape[1] - 1](F.normalize(features, dim=-1)))
        odds: Tensor = self.decide(torch.cat([top, seen], -1)).squeeze(-1)
        return odds

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Whether each image needs another expert."""
        if features is None:
            raise ArgumentError(
                "expert assignment reads the experts' features, but got none. Call the aggregator "
                "with logits and features."
            )
        return self.score(logits, features) > 0


def assignment_targets(logits: Tensor, target: Tensor) -> Tensor:
    """Which experts' images should go on, bool ``[B, K - 1]``.

    True after expert ``i`` if the mean of experts ``1..i`` is wrong and some later one is right.

    Args:
        logits: ``[B, K, C]``.
        target: int64 ``[B]``.

    Example:
        >>> logits = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [9.0, 0.0]]])  # means say 0, 1, 0
        >>> assignment_targets(logits, torch.tensor([1]))
        tensor([[ True, False]])
    """
    number = torch.arange(1, logits.shape[1] + 1, device=logits.device).unsqueeze(-1)
    right = (logits.cumsum(1) / number).argmax(-1) == target.unsqueeze(-1)
    later = right.flip(1).cummax(1).values.flip(1)[:, 1:]
    return ~right[:, :-1] & later


def assignment_loss(
    rule: ExpertAssignment,
    logits: Tensor,
    features: Tensor,
    target: Tensor,
    pos_weight: float = 100.0,
) -> Tensor:
    """Binary cross-entropy of the decisions with their targets, mean over images and experts.

    Args:
        rule: The heads.
        logits: ``[B, K, C]``.
        features: ``[B, K, D]``.
        target: int64 ``[B]``.
        pos_weight: Weight of the images that should go on; 100 on CIFAR.
    """
    wanted = assignment_targets(logits, target).to(logits.dtype)
    scores = [rule.score(logits[:, :k], features[:, k - 1]) for k in range(1, logits.shape[1])]
    weight = torch.tensor(pos_weight, device=logits.device, dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(torch.stack(scores, 1), wanted, pos_weight=weight)


def balanced_batches(
    labels: Tensor | Sequence[int], *, batch_size: int = 512, epochs: int = 5, seed: int = 0
) -> list[Tensor]:
    """Indices of batches that draw every class equally often (with replacement).

    Args:
        labels: Of the training images, ``[N]``.
        batch_size: Images per batch.
        epochs: ``N / batch_size`` batches each, rounded up.
        seed: Of the draw.

    Example:
        >>> labels = torch.tensor([0] * 90 + [1] * 10)
        >>> batches = balanced_batches(labels, batch_size=50, epochs=4)
        >>> len(batches), 150 < sum(int(labels[b].sum()) for b in batches) < 250
        (8, True)
    """
    labels = torch.as_tensor(labels)
    weight = 1.0 / torch.bincount(labels).double()[labels]
    generator = torch.Generator().manual_seed(seed)
    per_epoch = -(-len(labels) // batch_size)
    return [
        torch.multinomial(weight, batch_size, replacement=True, generator=generator)
        for _ in range(epochs * per_epoch)
    ]


def fit_expert_assignment(
    model: LongTailModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    num_steps: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    pos_weight: float = 100.0,
    top_n: int = 30,
    seed: int = 0,
) -> Sequential:
    """Train the heads on a frozen model and let it exit early from now on.

    Args:
        model: Trained; stays in eval mode and as it is, but for ``aggregate``.
        batches: Images and labels, class-balanced, see `balanced_batches`.
        num_steps: Batches in all (5 epochs in the paper), for the cosine schedule.
        lr: Of SGD.
        momentum: Of SGD.
        pos_weight: See `assignment_loss`.
        top_n: See `ExpertAssignment`.
        seed: Of the heads' initial weights.

    Returns:
        The new ``model.aggregate``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rule = ExpertAssignment(
            model.backbone.features,
            num_experts=model.num_experts,
            num_classes=model.num_classes,
            top_n=top_n,
        )
    device = next(model.parameters()).device
    rule.to(device)
    optimizer = torch.optim.SGD(rule.parameters(), lr=lr, momentum=momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(num_steps, 1))
    model.eval()
    for images, target in batches:
        with torch.no_grad():
            logits, features = model.backbone(images.to(device))
        optimizer.zero_grad()
        assignment_loss(rule, logits, features, target.to(device), pos_weight).backward()
        optimizer.step()
        schedule.step()
    model.aggregate = Sequential(rule.eval())
    return model.aggregate
