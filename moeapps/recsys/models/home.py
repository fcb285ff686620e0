"""HoME: tasks in categories, normalised experts, private inputs, residual self gates."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating.select import softmax_last
from moeapps.kernels.select import is_traced
from moeapps.recsys.blocks import batched_linear
from moeapps.recsys.gates import GateScores, Level, LevelOutput, sees
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task, task_groups

CACHED = 2**18  # numbers that an elementwise pass may write and find again in the cache


class FeatureGate(nn.Module):
    r"""A private view of the input for every set of experts.

    .. math::
        \mathrm{LoRA}_k(x) = 2\,\sigma(x B_k A_k), \qquad
        y = x \odot \sum_{k=1}^{L} \mathrm{softmax}(W_f x)_k\, \mathrm{LoRA}_k(x)

    Args:
        num_sets: ``S``.
        width: ``d``.
        num_lora: ``L``.
        rank: Of each product :math:`B_k A_k`; ``"paper"`` takes ``d / L``.
        shared_input: Whether all sets read one input.

    Shape:
        - ``[B, d]``, or ``[B, S, d]`` without ``shared_input`` -> ``[B, S, d]``

    Raises:
        ArgumentError: ``L`` does not divide ``d`` where the rank is the paper's.

    Notes:
        ``A`` starts at 0, so that a gate starts as 1.

    Example:
        >>> x = torch.randn(5, 8)
        >>> bool(torch.allclose(FeatureGate(3, 8, 2, 4)(x), x.unsqueeze(1)))
        True
    """

    def __init__(
        self,
        num_sets: int,
        width: int,
        num_lora: int,
        rank: int | Literal["paper"],
        *,
        shared_input: bool = True,
    ) -> None:
        super().__init__()
        if rank == "paper":
            if width % num_lora:
                raise ArgumentError(
                    f"rank='paper' splits {width} numbers over num_lora={num_lora}, which does not "
                    "divide it. Choose another num_lora, or give the rank as a number."
                )
            rank = width // num_lora
        if num_lora < 1 or rank < 1:
            raise ArgumentError(f"num_lora={num_lora}, rank={rank}. Expected 1 or more of both.")
        self.num_sets, self.num_lora, self.shared_input = num_sets, num_lora, shared_input
        pairs, bound = num_sets * num_lora, 1 / math.sqrt(width)
        down = torch.empty(num_sets, num_lora * rank, width).uniform_(-bound, bound)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(pairs, rank, width))
        choose = None
        if num_lora > 1:
            every = torch.ones(num_sets, num_lora, dtype=torch.bool)
            choose = GateScores(width, every, shared_input=shared_input)
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        """The input of every set."""
        rows = max(1, CACHED // (len(self.up) * x.shape[-1]))
        if is_traced() or not x.is_cpu or not self.shared_input or x.shape[0] <= 2 * rows:
            return self._gated(x).transpose(0, 1)
        # Every step below writes S * L inputs; a few rows at a time they stay in the cache.
        return torch.cat([self._gated(part) for part in x.split(rows)], 1).transpose(0, 1)

    def _gated(self, x: Tensor) -> Tensor:
        """``[S, B, d]``: sets first, as the experts will read them."""
        rank = self.up.shape[1]
        if self.shared_input:
            seen = x
            low = F.linear(x, self.down.flatten(0, 1)).unflatten(1, (-1, rank)).transpose(0, 1)
        else:
            seen = x.transpose(0, 1)
            low = batched_linear(seen, self.down).unflatten(2, (-1, rank))
            low = low.transpose(1, 2).flatten(0, 1)
        gate = torch.bmm(low, self.up).sigmoid()  # [S * L, B, d]
        if self.choose is None:
            gate = 2 * gate
        else:
            share = 2 * softmax_last(self.choose(x))
            share = share.permute(1, 2, 0).contiguous().unsqueeze(3)  # [S, L, B, 1]
            gate = (gate.unflatten(0, (self.num_sets, self.num_lora)) * share).sum(1)
        return seen * gate


class SelfGate(nn.Module):
    r"""A residual path: every gate weighs its own experts once more.

    .. math:: s = \mathrm{softmax}(W x + b) \text{ over the own experts, or }
        \sigma(w^\top x + b) \text{ if there is one}

    Args:
        width: Of what it reads.
        own: bool ``[N, E]``: the experts of each gate, equally many.
        shared_input: Whether all gates read one input.

    Shape:
        - ``[B, d]``, or ``[B, N, d]`` without ``shared_input`` -> ``[B, N, E]``, 0 for others

    Example:
        >>> own = torch.eye(2, dtype=torch.bool)
        >>> (SelfGate(4, own)(torch.zeros(1, 4))[0] > 0).tolist()
        [[True, False], [False, True]]
    """

    def __init__(self, width: int, own: Tensor, *, shared_input: bool = True) -> None:
        super().__init__()
        self.score = GateScores(width, own, shared_input=shared_input)
        self.num_own = max(self.score.counts)

    def forward(self, x: Tensor) -> Tensor:
        """Weights to add to those of the gate."""
        logits = self.score.seen(x)
        if self.num_own == 1:
            return self.score.spread(logits.sigmoid(), 0.0)
        own = softmax_last(logits.unflatten(1, (-1, self.num_own)))
        return self.score.spread(own.flatten(1), 0.0)


class HoME(Ranker):
    r"""Hierarchy of multi-gate experts, against collapsed, degraded and underfitted experts.

    Tasks fall into categories :math:`c`. Every expert is
    :math:`\mathrm{SiLU}(\mathrm{BatchNorm}(\mathrm{MLP}(x)))`, and every set of experts reads its
    input through a gate of its own, :math:`\tilde x_q = x \odot \mathrm{FeaGate}_q(x)`.

    Level 1 has ``K`` experts per category and ``K`` shared ones, which read :math:`\tilde v_q`:

    .. math::
        z_c &= \mathrm{softmax}(W_c v) \cdot [H_S \,\|\, H_c] + s_c(v) \cdot H_c \\
        z_S &= \mathrm{softmax}(W_S v) \cdot [H_S \,\|\, H_1 \,\|\, \dots] + s_S(v) \cdot H_S

    Level 2 has shared experts reading :math:`\tilde z_S`, experts of a category reading
    :math:`\tilde z_c` and experts of a task reading :math:`\tilde z_{c(t)}` through its own gate:

    .. math::
        y_t = \mathrm{softmax}\big(W_t\,(z_S \,\|\, z_{c(t)})\big) \cdot
        [\text{shared} \,\|\, \text{category} \,\|\, \text{own}]
        + s_t(z_{c(t)}) \cdot [\text{own}]

    The self gates :math:`s` are softmax, or sigmoid for one expert;
    :math:`\mathrm{logit}_t = \mathrm{tower}_t(y_t)`. A task never sees the category or task experts
    of another category.

    Args:
        schema: The features.
        tasks: The tasks, each with its category as ``group``.
        num_meta: ``K``, experts per set on level 1.
        num_shared: Shared experts on level 2.
        num_category: Experts per category on level 2.
        num_specific: Experts per task on level 2.
        expert_dims: Widths of an expert's layers on both levels.
        num_lora: ``L`` of the feature gates on both levels.
        rank: Of the feature gates; ``"paper"`` for width / ``L``.
        feature_gate_1: Feature gates on level 1.
        feature_gate_2: Feature gates on level 2.
        self_gate: The residual self gates.
        hierarchy: False puts all tasks into one category.
        norm_act: BatchNorm and SiLU in the experts; False: ReLU alone.
        **common: Options of every model, see `Ranker`; ``norm`` and ``act`` follow ``norm_act``.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Raises:
        ArgumentError: A task has no category, or ``rank="paper"`` does not fit.

    Notes:
        Departures from the paper, or where it is silent: the hidden layers of an expert are
        normalised too; the rank is 16 by default; gates have a bias.

    References:
        Wang et al., *HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou*,
        KDD 2025. https://arxiv.org/abs/2408.05430

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> tasks = [Task("click", group="watch"), Task("like", group="interact")]
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = HoME(schema, tasks, expert_dims=[[16], [8]], rank=4)
        >>> logits, aux = model({"cat": torch.tensor([[1], [2], [3]])}, return_aux=True)
        >>> aux.levels[0].gates, aux.levels[1].owners
        (('shared', 'watch', 'interact'), ('shared', 'watch', 'interact', 'click', 'like'))
    """

    reads: Tensor

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        num_meta: int = 3,
        num_shared: int = 1,
        num_category: int = 1,
        num_specific: int = 1,
        expert_dims: Sequence[Sequence[int]] = ((256, 128), (128,)),
        num_lora: Sequence[int] = (2, 1),
        rank: int | Literal["paper"] = 16,
        feature_gate_1: bool = True,
        feature_gate_2: bool = True,
        self_gate: bool = True,
        hierarchy: bool = True,
        norm_act: bool = True,
        **common: Any,
    ) -> None:
        common |= {"norm": "batch", "act": "silu"} if norm_act else {"norm": None, "act": "relu"}
        super().__init__(schema, tasks, **common)
        if len(expert_dims) != 2 or len(num_lora) != 2:
            raise ArgumentError(
                f"expert_dims={expert_dims}, num_lora={num_lora}. HoME has two levels; give one "
                "entry for each."
            )
        groups, group_of = _categories(self.tasks, hierarchy)
        num_groups, names = len(groups), self.task_names
        width, inner = self.schema.flat_width, expert_dims[0][-1]

        # Level 1: set 0 is shared, set 1 + c belongs to category c.
        sets = range(1 + num_groups)
        owner = [q for q in sets for _ in range(num_meta)]
        visible = sees([sets if q == 0 else (0, q) for q in sets], owner)
        own = sees([[q] for q in sets], owner)
        labels = ["shared", *groups]
        experts = [num_meta] * len(sets) if feature_gate_1 else len(owner)
        self.level_1 = Level(
            self.make_bank(experts, width, expert_dims[0]),
            self.make_gate(width, visible),
            labels,
            [labels[q] for q in owner],
            SelfGate(width, own) if self_gate else None,
        )
        self.feature_gate_1 = (
            FeatureGate(len(sets), width, num_lora[0], rank) if feature_gate_1 else None
        )

        # Level 2: the same sets, then set 1 + G + t for task t, which reads the z of its category.
        counts = [num_shared] + [num_category] * num_groups + [num_specific] * len(names)
        owner = [q for q, count in enumerate(counts) for _ in range(count)]
        task_sets = range(len(sets), len(counts))
        visible = sees([(0, 1 + group_of[t], q) for t, q in enumerate(task_sets)], owner)
        own = sees([[q] for q in task_sets], owner)
        labels = [*labels, *names]
        self.level_2 = Level(
            self.make_bank(counts, inner, expert_dims[1]),
            self.make_gate(2 * inner, visible, shared_input=False),
            names,
            [labels[q] for q in owner],
            SelfGate(inner, own, shared_input=False) if self_gate else None,
        )
        self.feature_gate_2 = (
            FeatureGate(len(counts), inner, num_lora[1], rank, shared_input=False)
            if feature_gate_2
            else None
        )
        reads = [*sets, *(1 + group_of[t] for t in range(len(names)))]
        self.register_buffer("reads", torch.tensor(reads), persistent=False)
        self.towers = self.make_towers(expert_dims[1][-1])

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What each task mixes on level 2."""
        gate_1, gate_2 = self.feature_gate_1, self.feature_gate_2
        first: LevelOutput = self.level_1(x) if gate_1 is None else self.level_1(gate_1(x), x)
        z = first.mixed.transpose(0, 1).index_select(0, self.reads)  # [1 + G + T, B, D]
        shared, own = z[0], z[-len(self.tasks) :]
        both = torch.cat([shared.expand_as(own), own], 2).transpose(0, 1)
        z, own = z.transpose(0, 1), own.transpose(0, 1)
        second: LevelOutput = self.level_2(z if gate_2 is None else gate_2(z), both, own)
        return second.mixed, [first, second]


def _categories(tasks: Sequence[Task], hierarchy: bool) -> tuple[list[str], list[int]]:
    """The categories, and the category of each task."""
    if not hierarchy:
        return ["all"], [0] * len(tasks)
    groups = task_groups(tasks)
    for task in tasks:
        if task.group is None:
            raise ArgumentError(
                f"Task {task.name!r} has no group. HoME needs the category of every task, for "
                "example Task('like', group='interaction'); hierarchy=False puts all into one."
            )
    return groups, [groups.index(task.group or "") for task in tasks]
