"""The cosine classifier: logits are scaled cosines between features and class vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineClassifier(nn.Module):
    r"""A linear classifier on the unit sphere, without a bias.

    .. math:: z_j = s \cdot \frac{\langle x, w_j \rangle}{\lVert x \rVert\, \lVert w_j \rVert}

    Args:
        in_features: Width ``D`` of the features.
        num_classes: ``C``.
        scale: ``s``, fixed. Margins of a loss must be multiplied by it too.

    Shape:
        - features ``[*L, D]``; logits ``[*L, C]``, within ``[-s, s]``

    Notes:
        Departures from the papers: none. Every column of the weight starts as a random direction.
        Computed in float32 at least, also under autocast: a bfloat16 cosine times 30 is off by 0.1.

    References:
        Wang et al., *Long-tailed Recognition by Routing Diverse Distribution-Aware Experts*, ICLR
        2021 (its classifier).

    Example:
        >>> classifier = CosineClassifier(8, 3)
        >>> features = torch.randn(5, 8)
        >>> logits = classifier(features)
        >>> logits.shape, bool((logits.abs() <= 30.001).all())
        (torch.Size([5, 3]), True)
        >>> torch.testing.assert_close(classifier(7 * features), logits)
    """

    def __init__(self, in_features: int, num_classes: int, *, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        weight = torch.empty(in_features, num_classes).uniform_(-1, 1)
        self.weight = nn.Parameter(F.normalize(weight, dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """Scaled cosines with every class."""
        with torch.autocast(features.device.type, enabled=False):
            exact = torch.promote_types(features.dtype, torch.float32)
            directions = F.normalize(features.to(exact), dim=-1)
            return self.scale * (directions @ F.normalize(self.weight.to(exact), dim=0))

    def extra_repr(self) -> str:
        """Widths and scale."""
        width, classes = self.weight.shape
        return f"{width}, {classes}, scale={self.scale}"
