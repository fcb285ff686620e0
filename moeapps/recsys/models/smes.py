"""SMES-style: every row runs a bounded set of experts, some for all tasks, some for one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from moeapps.errors import ArgumentError
from moeapps.gating import Gate, Routing, topk
from moeapps.recsys.gates import GateScores, Level, LevelOutput, everyone
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class SharedPrivate:
    r"""Each row takes experts for all its tasks, and each task some more for itself.

    .. math::
        \mathcal{S} = \operatorname{top}_{k_s}\Big(\tfrac1T \sum_t p_t\Big), \qquad
        \mathcal{P}_t = \operatorname{top}_{k_p}\big(p_t \text{ outside } \mathcal{S}\big)

    Weights are :math:`p_t` over :math:`\mathcal{S} \cup \mathcal{P}_t`, made to sum to 1. A row
    runs :math:`k_s + T k_p` experts at most.

    Args:
        shared_k: ``k_s``.
        private_k: ``k_p``.

    Shape:
        - logits ``[B, T, E]``; weights and indices ``[B, T, k_s + k_p]``, shared ones first

    Example:
        >>> logits = torch.tensor([[[3.0, 2.0, 0.0], [3.0, 0.0, 2.0]]])
        >>> SharedPrivate(1, 1)(logits).indices.tolist()
        [[[0, 1], [0, 2]]]
    """

    layout, reads_bias, ranks = "token", False, True

    def __init__(self, shared_k: int, private_k: int) -> None:
        self.shared_k, self.private_k = shared_k, private_k

    def __call__(
        self,
        logits: Tensor,
        *,
        bias: Tensor | None = None,
        valid: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Routing:
        """Choose; bias and generator are not used."""
        probs = logits.softmax(-1)
        joint = topk(probs.mean(1), self.shared_k, score="identity").indices
        assert joint is not None
        joint = joint.unsqueeze(1).expand(-1, probs.shape[1], -1)
        chosen = [joint]
        if self.private_k:
            rest = probs.scatter(-1, joint, -torch.inf)
            private = topk(rest, self.private_k, score="identity").indices
            assert private is not None
            chosen.append(private)
        indices = torch.cat(chosen, -1)
        weights = probs.gather(-1, indices)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        return Routing(
            weights, probs.shape[-1], indices, logits=logits, probs=probs, layout="token"
        )


class SMES(Ranker):
    r"""SMES-style sparse multi-gate mixture of experts.

    As MMoE, but a row runs only the experts of `SharedPrivate`. For the balance over tasks train
    with the auxiliary loss ``balance``, which is :math:`E \sum_e f_e p_e` with :math:`f` and
    :math:`p` over all tasks.

    Args:
        schema: The features.
        tasks: The tasks.
        num_experts: ``E``.
        expert_dims: Widths of an expert's layers.
        shared_k: Experts of a row for all tasks.
        private_k: More experts for each task.
        gate: ``temperature``, and options of `GateScores`.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Raises:
        ArgumentError: More experts are chosen than there are.

    Notes:
        A reconstruction from the abstract. Experts this small are evaluated for all rows and the
        unchosen ones mixed with weight 0: gathering rows costs more than it saves.

    References:
        *SMES: Towards Scalable Multi-Task Recommendation via Expert Sparsity*, 2026.
        https://arxiv.org/abs/2602.09386

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = SMES(schema, ["click", "like"], num_experts=6, expert_dims=[16])
        >>> _, aux = model({"cat": torch.tensor([[1], [2], [3]])}, return_aux=True)
        >>> aux.levels[0].routing.indices.shape
        torch.Size([3, 2, 4])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        num_experts: int = 16,
        expert_dims: Sequence[int] = (256, 128),
        shared_k: int = 2,
        private_k: int = 2,
        gate: Mapping[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, **common)
        if shared_k < 1 or private_k < 0 or shared_k + private_k > num_experts:
            raise ArgumentError(
                f"shared_k={shared_k}, private_k={private_k} of num_experts={num_experts}. "
                "Expected shared_k >= 1, private_k >= 0 and no more than there are together."
            )
        width, names = self.schema.flat_width, self.task_names
        options = dict(gate or {})
        temperature = options.pop("temperature", 1.0)
        score = GateScores(width, everyone(len(names), num_experts), **options)
        self.level = Level(
            self.make_bank(num_experts, width, expert_dims),
            Gate(score, SharedPrivate(shared_k, private_k), temperature=temperature),
            names,
            ["shared"] * num_experts,
        )
        self.towers = self.make_towers(expert_dims[-1])

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What each task mixes."""
        level: LevelOutput = self.level(x)
        return level.mixed, [level]
