r"""A graph in which half of the nodes are told by their features and half by their neighbours."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError
from moeapps.graphs.datasets.splits import split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

CARDS = {
    "mixed-csbm": DatasetCard(
        name="mixed-csbm",
        title="MixedCSBM",
        domain="graphs",
        task="node classification",
        metric="accuracy",
        sizes={"nodes": 3_000, "edges": 35_700, "features": 32},
        classes=5,
        splits="seeded 50/25/25, any number",
        licence="made from a seed",
        source="moeapps",
        url="https://en.wikipedia.org/wiki/Stochastic_block_model",
        citation="Contextual stochastic block model with two kinds of nodes",
        synthetic=True,
        notes="Sizes are those of size='default'; the edge count varies a little with the seed.",
    )
}


@dataclass(frozen=True)
class MixedCSBM:
    r"""Contextual stochastic block model with feature nodes and structure nodes.

    Feature nodes (``kind`` 1) carry their class in their own features and have neighbours of random
    classes. Structure nodes (``kind`` 0) carry almost nothing themselves and have neighbours of
    their own class. A network on features and a graph network are each right on one half, so a
    mixture that knows which half a node is in beats both.

    .. math:: x_v = a_{kind(v)}\, \mu_{y(v)} + \sigma \varepsilon_v, \; \varepsilon_v \sim N(0, I)

    with orthonormal class means :math:`\mu`. Each of :math:`V \cdot degree / 2` draws takes a
    source uniformly, a target of the source's kind with probability ``p_within``, and of the
    source's class with probability ``h_feat`` or ``h_struct`` by the source's kind (else of another
    class, uniformly), uniformly inside that cell. Self loops are dropped, reverses added and
    duplicates merged.

    ========= ======= == === ====== ============== ============== ======= ======
    Size            V  n   d degree directed edges edge homophily kind 1  kind 0
    ========= ======= == === ====== ============== ============== ======= ======
    tiny          400  5  32     12          4,500           0.51    0.24   0.80
    default     3,000  5  32     12         35,700           0.52    0.24   0.81
    large     100,000 10 128     10        999,600           0.47    0.14   0.81
    ========= ======= == === ====== ============== ============== ======= ======

    Args:
        num_nodes: V.
        num_classes: n, at most ``num_features``.
        num_features: d.
        feat_ratio: Share of feature nodes.
        mu_feat: Length of the class mean in feature nodes.
        mu_struct: The same in structure nodes.
        sigma: Standard deviation of the noise.
        avg_degree: Expected neighbours per node before duplicates are merged.
        h_feat: Chance that a feature node's draw stays in its class. None is ``1 / n``: its
            neighbours say nothing. With ``decoy`` None is ``h_struct``.
        h_struct: The same for structure nodes.
        p_within: Chance that a draw stays in its kind.
        decoy: Control in which a mixture has nothing to gain: feature nodes cluster just as
            tightly, but around the means of a ``decoy`` label that is independent of ``y``, and
            all neighbourhoods are homophilous. A gate that goes by looks alone is fooled.

    Notes:
        A cell without nodes (possible in very small graphs, or with ``feat_ratio`` 0 or 1) is
        replaced by the cell of the same class and the other kind.

    Example:
        >>> data = MixedCSBM(num_nodes=400).sample(seed=0)
        >>> sorted(set(data.kind.tolist()))
        [0, 1]
    """

    num_nodes: int = 3_000
    num_classes: int = 5
    num_features: int = 32
    feat_ratio: float = 0.5
    mu_feat: float = 4.0
    mu_struct: float = 0.4
    sigma: float = 1.0
    avg_degree: float = 12.0
    h_feat: float | None = None
    h_struct: float = 0.85
    p_within: float = 0.9
    decoy: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= min(self.num_nodes, self.num_features):
            raise ArgumentError(
                f"num_classes={self.num_classes} does not fit {self.num_nodes} nodes with "
                f"{self.num_features} features. Choose 2..min(num_nodes, num_features)."
            )
        for name in ("feat_ratio", "h_feat", "h_struct", "p_within"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ArgumentError(f"{name}={value} is no probability. Choose 0..1.")
        for name in ("sigma", "avg_degree", "mu_feat", "mu_struct"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ArgumentError(f"{name}={getattr(self, name)} is negative or not finite.")

    def sample(self, *, seed: int = 0, split: int = 0) -> "Data":
        """Draw a graph.

        Args:
            seed: Fixes labels, kinds, features and edges.
            split: Together with the seed fixes the 50/25/25 masks.

        Returns:
            ``Data`` with, besides the usual fields, ``kind [V]`` (1 = feature node),
            ``local_homophily [V]`` (share of neighbours with the node's class, NaN when isolated)
            and, with ``decoy=True``, ``decoy [V]`` (-1 on structure nodes).
        """
        from moeapps.graphs.datasets.assemble import assemble
        from moeapps.graphs.datasets.splits import random_masks

        rng = np.random.default_rng(seed)
        nodes, classes = self.num_nodes, self.num_classes
        y = rng.permutation(np.arange(nodes) % classes)
        kind = (rng.random(nodes) < self.feat_ratio).astype(np.int64)
        means = _random_orthogonal(rng, self.num_features)[:classes]
        scale = np.where(kind == 1, self.mu_feat, self.mu_struct)
        shown, extra = y, {}
        if self.decoy:
            decoy = rng.permutation(np.arange(nodes) % classes)
            shown = np.where(kind == 1, decoy, y)
            extra["decoy"] = np.where(kind == 1, decoy, -1)
        noise = rng.standard_normal((nodes, self.num_features), dtype=np.float32)
        x = scale[:, None] * means[shown] + self.sigma * noise

        edges = self._draw_edges(rng, y, kind)
        masks = random_masks(y, _mixed_seed(seed, split), train=0.5, val=0.25)
        data = assemble(
            replace(CARDS["mixed-csbm"], classes=classes),
            x=x, y=y, edges=edges, masks=masks, undirected=True, self_loops=False,
            split_source=f"seeded 50/25/25 split {split}", exact=(), kind=kind, **extra,
        )  # fmt: skip
        data.local_homophily = _local_homophily(data)
        return data

    def _draw_edges(self, rng: np.random.Generator, y: np.ndarray, kind: np.ndarray) -> np.ndarray:
        nodes, classes = self.num_nodes, self.num_classes
        h_feat = self.h_feat
        if h_feat is None:
            h_feat = self.h_struct if self.decoy else 1 / classes
        draws = int(nodes * self.avg_degree / 2)
        source = rng.integers(nodes, size=draws)
        own_kind = rng.random(draws) < self.p_within
        target_kind = np.where(own_kind, kind[source], 1 - kind[source])
        own_class = rng.random(draws) < np.where(kind[source] == 1, h_feat, self.h_struct)
        other = (y[source] + rng.integers(1, classes, size=draws)) % classes
        target_class = np.where(own_class, y[source], other)

        cell = kind * classes + y
        members = np.argsort(cell, kind="stable")  # nodes, cell by cell
        counts = np.bincount(cell, minlength=2 * classes)
        starts = np.cumsum(counts) - counts
        wanted = target_kind * classes + target_class
        wanted = np.where(counts[wanted] > 0, wanted, (1 - target_kind) * classes + target_class)
        place = (rng.random(draws) * counts[wanted]).astype(np.int64)
        return np.stack([source, members[starts[wanted] + place]])


SIZES = {
    "tiny": MixedCSBM(num_nodes=400),
    "default": MixedCSBM(),
    "large": MixedCSBM(num_nodes=100_000, num_classes=10, num_features=128, avg_degree=10.0),
}


def mixed_csbm(
    size: str = "default",
    *,
    seed: int = 0,
    split: int = 0,
    decoy: bool = False,
    **parameters: float,
) -> "Data":
    """Draw a :class:`MixedCSBM` of a named size.

    Args:
        size: ``"tiny"`` (400 nodes), ``"default"`` (3,000) or ``"large"`` (100,000).
        seed: Fixes the graph.
        split: Together with the seed fixes the masks.
        decoy: The control without gain.
        **parameters: Any further parameter of :class:`MixedCSBM`.

    Raises:
        ArgumentError: For an unknown size or parameter, or a value out of range.

    Example:
        >>> data = mixed_csbm("tiny")
        >>> data.num_nodes, data.is_undirected()
        (400, True)
    """
    if size not in SIZES:
        raise ArgumentError(f"size={size!r} does not exist. Choose {', '.join(SIZES)}.")
    known = {f.name for f in fields(MixedCSBM)}
    if unknown := sorted(set(parameters) - known):
        raise ArgumentError(
            f"MixedCSBM has no {', '.join(unknown)}. It has {', '.join(sorted(known))}."
        )
    return replace(SIZES[size], decoy=decoy, **parameters).sample(seed=seed, split=split)  # type: ignore[arg-type]


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: int | str | None = None,
    download: bool = False,
    size: str = "default",
    seed: int = 0,
    decoy: bool = False,
    **parameters: float,
) -> "Data":
    """:func:`mixed_csbm` as a set with a name; there are no files, so ``root`` has no effect."""
    number = split_number(split, count=2**31)
    return mixed_csbm(size, seed=seed, split=number, decoy=decoy, **parameters)


def _random_orthogonal(rng: np.random.Generator, size: int) -> np.ndarray:
    """A Haar-distributed orthogonal matrix; its rows are the directions used."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return (q * np.sign(np.diag(r))).T


def _mixed_seed(seed: int, split: int) -> int:
    return int(np.random.SeedSequence([seed, split]).generate_state(1)[0])


def _local_homophily(data: "Data") -> Any:
    import torch

    source, target = data.edge_index
    same = (data.y[source] == data.y[target]).float()
    degree = torch.bincount(target, minlength=data.num_nodes)
    return torch.zeros(data.num_nodes).index_add_(0, target, same) / degree
