"""Models for serving: normalisation folded away, products of one input joined."""

import copy
import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.gating import Routing
from moeapps.gating.select import softmax_last
from moeapps.recsys.blocks import ExpertBank, stacked_linear
from moeapps.recsys.gates import GateBank, GateScores, Level, LevelOutput

Model = TypeVar("Model", bound=nn.Module)


def fused(model: Model) -> Model:
    r"""A copy in evaluation mode that computes the same with fewer operations.

    Batch normalisation is an affine map in evaluation mode, so it goes into the weights before it:

    .. math:: w' = w\,\frac{\gamma}{\sqrt{s^2+\epsilon}}, \qquad
        b' = (b - \mu)\,\frac{\gamma}{\sqrt{s^2+\epsilon}} + \beta

    On a level whose experts and gates read one input, the experts' first layer and the gates become
    one product.

    Args:
        model: Trained; it is not changed.

    Notes:
        The copy does not learn, and reports no routings to :func:`moeapps.gating.record`.

    Example:
        >>> from moeapps.recsys.models.mmoe import MMoE
        >>> from moeapps.recsys.schema import Categorical, FeatureSchema
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = MMoE(schema, ["click"], num_experts=3, expert_dims=[8], norm="batch").eval()
        >>> batch = {"cat": torch.tensor([[1], [2]])}
        >>> bool(torch.allclose(fused(model)(batch), model(batch), atol=1e-5))
        True
    """
    served = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(served.modules()):
        if isinstance(module, ExpertBank):
            module.fold_norm()
    for module in list(served.modules()):
        for name, child in module.named_children():
            if isinstance(child, Level) and isinstance(child.gate, GateBank):
                setattr(module, name, FusedLevel(child))
    return served


class FusedLevel(nn.Module):
    """A level for serving.

    Args:
        level: In evaluation mode, its experts folded.

    Shape:
        - as `Level`
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.experts, self.residual = level.experts, level.residual
        self.gates, self.owners = level.gates, level.owners
        assert isinstance(level.gate, GateBank)
        self.gate = FusedGate(level.gate)
        self.joined = self.experts.sets is None and self.gate.reads_input
        if self.joined:
            first = self.experts.layers[0][0]
            assert first.b is not None
            self.split = [first.b.numel(), self.gate.bias.numel()]
            self.register_buffer("weight", torch.cat([first.w.flatten(0, 1), self.gate.weight]))
            self.register_buffer("bias", torch.cat([first.b.flatten(), self.gate.bias]))

    def forward(
        self, x: Tensor, gate_input: Tensor | None = None, residual_input: Tensor | None = None
    ) -> LevelOutput:
        """Mix the experts for every gate."""
        seen = x if gate_input is None else gate_input
        if self.joined and gate_input is None:
            h, logits = F.linear(x, self.weight, self.bias).split(self.split, 1)
            experts = self.experts.after_first(h)
            probs = softmax_last(logits.unflatten(1, self.gate.shape))
        else:
            experts, probs = self.experts(x), self.gate(seen)
        weights = probs
        if self.residual is not None:
            weights = weights + self.residual(seen if residual_input is None else residual_input)
        routing = Routing(weights, len(self.owners), probs=probs)
        mixed = torch.bmm(weights, experts)
        return LevelOutput(mixed, experts, routing, self.gates, self.owners)


class FusedGate(nn.Module):
    """Gates for serving: hidden experts have zero weights and a bias of minus infinity.

    Args:
        gate: In evaluation mode, the bank of its score folded.

    Shape:
        - as `GateBank`, but the probabilities alone
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, gate: GateBank) -> None:
        super().__init__()
        score = gate.score
        assert isinstance(score, GateScores)
        self.bank, self.shape = score.bank, score.visible.shape
        self.sets = None if score.sets is None else [self.shape[1]] * self.shape[0]
        w, b = score.linear.w.squeeze(1), torch.zeros(score.linear.w.shape[0])
        if score.linear.b is not None:
            b = score.linear.b.squeeze(1)
        if score.norm is not None:
            scale, shift = (part.squeeze(1) for part in score.norm.scale_and_shift())
            w, b = w * scale.unsqueeze(1), b * scale + shift
        seen, tau = score.visible.flatten(), gate.temperature
        weight, bias = w.new_zeros(len(seen), w.shape[1]), w.new_full((len(seen),), -math.inf)
        weight[seen], bias[seen] = w / tau, b / tau
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @property
    def reads_input(self) -> bool:
        """Whether it is one product with the input of all gates."""
        return self.bank is None and self.sets is None

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities ``[B, N, E]``."""
        if self.bank is not None:
            x = self.bank(x)
        logits = stacked_linear(x, self.weight.unsqueeze(1), self.bias.unsqueeze(1), self.sets)
        return softmax_last(logits.unflatten(1, self.shape))
