"""One frozen teacher per vertical, and the soft targets that they give a student."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating import Routing, report_routing
from moeapps.vision.specialists.verticals import Verticals


class SpecialistPool(nn.Module):
    r"""Teachers of which each knows the classes of one vertical.

    An image is answered by the teacher of its label's vertical; only that teacher runs on it.

    .. math:: z^*_c = \sigma(x_c) \text{ if } c \in \operatorname{top-}K(x), \text{ else } 0

    and 0 for all classes of other verticals.

    Args:
        teachers: One per vertical; the logits of teacher ``v`` are for the classes of ``v`` in
            ascending order. They are frozen and stay in eval mode.
        class_to_vertical: The vertical of every class.
        top_k: Entries of a teacher that are kept.

    Shape:
        - images ``[B, ...]``, labels ``[B]`` -> soft targets ``[B, N]``

    Raises:
        ArgumentError: Another number of teachers than verticals, a teacher that answers with the
            wrong width or with NaN, or a label out of range.

    References:
        Gao et al., *Knowledge Concentration: Learning 100K Object Classifiers in a Single CNN*,
        arXiv 1711.07607.

    Example:
        >>> pool = SpecialistPool([nn.Linear(4, 2), nn.Linear(4, 1)], [0, 1, 0])
        >>> targets = pool(torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0]))
        >>> targets.shape, (targets[1] > 0).tolist()
        (torch.Size([5, 3]), [False, True, False])
    """

    def __init__(
        self, teachers: Sequence[nn.Module], class_to_vertical: Sequence[int], top_k: int = 100
    ) -> None:
        super().__init__()
        self.verticals = Verticals(class_to_vertical)
        if len(teachers) != len(self.verticals):
            raise ArgumentError(
                f"{len(teachers)} teachers for {len(self.verticals)} verticals. Give one each."
            )
        if top_k < 1:
            raise ArgumentError(f"top_k={top_k} leaves no target. Choose 1 or more.")
        self.top_k = top_k
        self.teachers = nn.ModuleList(teachers).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "SpecialistPool":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Soft targets."""
        probs = self.answers(images, labels).sigmoid()
        kept = probs.topk(min(self.top_k, probs.shape[1]), 1)
        return torch.zeros_like(probs).scatter(1, kept.indices, kept.values)

    @torch.no_grad()
    def answers(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits ``[B, N]`` of the teacher of each label, -inf for classes of other verticals."""
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(
            self.verticals.of_class
        ):
            raise ArgumentError(
                f"labels reach from {int(labels.min())} to {int(labels.max())}, expected 0 to "
                f"{self.verticals.num_classes - 1}."
            )
        chosen = self.verticals.of_class[labels]
        report_routing(self, Routing(
            torch.ones(len(labels), 1, device=images.device), len(self.verticals),
            chosen.unsqueeze(1), layout="token",
        ))  # fmt: skip
        shape = (len(labels), self.verticals.num_classes)
        found = torch.full(shape, -torch.inf, device=images.device)
        for vertical in chosen.unique().tolist():
            rows = (chosen == vertical).nonzero()
            columns = torch.tensor(self.verticals.members[vertical], device=images.device)
            found[rows, columns] = self._answer(vertical, images[rows.squeeze(1)])
        return found

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """All teachers on all images, ``[B, N]``: the bound that a student is compared with."""
        answers = [self._answer(v, images) for v in range(len(self.verticals))]
        order = torch.tensor([c for members in self.verticals.members for c in members])
        return torch.cat(answers, 1)[:, order.argsort().to(images.device)]

    def _answer(self, vertical: int, images: Tensor) -> Tensor:
        logits: Tensor = self.teachers[vertical](images).float()
        wanted = (len(images), len(self.verticals.members[vertical]))
        if logits.shape != wanted:
            raise ArgumentError(
                f"the teacher of vertical {vertical} gave {list(logits.shape)}, expected "
                f"{list(wanted)}: one logit per class of its vertical."
            )
        if not bool(logits.isfinite().all()):
            raise ArgumentError(
                f"the teacher of vertical {vertical} gave NaN or infinite logits. Look for a "
                "training that diverged."
            )
        return logits
