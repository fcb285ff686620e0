"""APEM-style: attention over feature fields, and task indicators that pick patterns."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.recsys.batch import Batch
from moeapps.recsys.gates import LevelOutput
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class Attention(nn.Module):
    r"""Multi-head attention from queries to keys.

    .. math:: \mathrm{MHA}(Q, K) = \big\Vert_h\, \mathrm{softmax}(Q_h K_h^\top / \sqrt{k_h})\,V_h\ W

    Args:
        width: ``k``.
        heads: Must divide ``k``.

    Shape:
        - ``[B, q, k], [B, n, k] -> [B, q, k]``
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ArgumentError(f"heads={heads} does not divide the field width {width}.")
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """What each query gathers from the keys."""
        parts = [self.query(query), *self.key_value(keys).chunk(2, -1)]
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    r"""Attention and a feed-forward layer with residuals and layer normalisation.

    .. math::
        Z = \mathrm{LN}(Q + \mathrm{MHA}(Q, K)), \qquad
        \mathrm{MAB}(Q, K) = \mathrm{LN}(Z + \mathrm{FF}(Z))

    Args:
        width: ``k``.
        heads: Of the attention.

    Shape:
        - ``[B, q, k], [B, n, k] -> [B, q, k]``
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.forward_net = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """The queries after looking at the keys."""
        z: Tensor = self.norm_1(query + self.attention(query, keys))
        y: Tensor = self.norm_2(z + self.forward_net(z))
        return y


class SetBlock(nn.Module):
    r"""Attention among fields through a few learned group vectors.

    .. math:: C = \mathrm{MAB}(I, X), \qquad Y = \mathrm{MAB}(X, C)

    Args:
        width: ``k``.
        heads: Of the attention.
        num_groups: Group vectors ``I``.

    Shape:
        - ``[B, F, k] -> [B, F, k]``
    """

    def __init__(self, width: int, heads: int, num_groups: int) -> None:
        super().__init__()
        self.groups = nn.Parameter(torch.randn(num_groups, width) * 0.1)
        self.gather, self.spread = AttentionBlock(width, heads), AttentionBlock(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        """The fields after looking at each other."""
        groups = self.groups.expand(x.shape[0], -1, -1)
        y: Tensor = self.spread(x, self.gather(groups, x))
        return y


class APEM(Ranker):
    r"""APEM-style: automatic pattern extraction for multi-task ranking.

    Fields :math:`X \in \mathbb{R}^{F \times k}` are weighted by squeeze and excitation,
    :math:`X \leftarrow X \odot \sigma(W_2\,\mathrm{ReLU}(W_1\,\mathrm{mean}_k X))`, look at each
    other in blocks of group attention, see `SetBlock`, and every task picks patterns with learned
    indicator vectors :math:`S_t`:

    .. math:: P_t = \mathrm{MHA}(S_t, Y), \qquad \mathrm{logit}_t = \mathrm{tower}_t(P_t)

    Args:
        schema: Features of one width: equal ``dim``, dense ones with ``project=dim``.
        tasks: The tasks.
        num_blocks: Blocks of group attention.
        num_groups: Group vectors of a block.
        num_indicators: Indicator vectors per task.
        heads: Of every attention.
        reduction: Of squeeze and excitation.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Raises:
        ArgumentError: The features differ in width, or ``heads`` does not divide it.

    Notes:
        A reconstruction: the paper's abstract names the parts; the equations here are our reading.

    References:
        Zhang et al., *Automatic Pattern Extraction Model for multi-task learning in the multi-step
        conversion*, 2023. https://arxiv.org/abs/2301.02494

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> schema = FeatureSchema([Categorical("user", 9, 4), Categorical("item", 9, 4)])
        >>> model = APEM(schema, ["click", "like"], num_groups=3)
        >>> model({"cat": torch.tensor([[1, 1], [2, 8], [3, 4]])}).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        num_blocks: int = 2,
        num_groups: int = 8,
        num_indicators: int = 4,
        heads: int = 2,
        reduction: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, **common)
        width, num_fields = self.schema.field_width, len(self.schema.features)
        squeezed = max(1, num_fields // reduction)
        self.excite = nn.Sequential(
            nn.Linear(num_fields, squeezed), nn.ReLU(), nn.Linear(squeezed, num_fields)
        )
        self.blocks = nn.ModuleList(SetBlock(width, heads, num_groups) for _ in range(num_blocks))
        self.indicators = nn.Parameter(torch.randn(len(self.tasks), num_indicators, width) * 0.1)
        self.select = Attention(width, heads)
        self.towers = self.make_towers(num_indicators * width)

    def read(self, batch: Batch) -> Tensor:
        """One vector per field, ``[B, F, k]``."""
        fields: Tensor = self.inputs.fields(batch)
        return fields

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """The patterns of every task."""
        x = x * self.excite(x.mean(2)).sigmoid().unsqueeze(2)
        for block in self.blocks:
            x = block(x)
        queries = self.indicators.flatten(0, 1).expand(x.shape[0], -1, -1)
        patterns: Tensor = self.select(queries, x)
        return patterns.unflatten(1, self.indicators.shape[:2]).flatten(2), []
