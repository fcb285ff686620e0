"""Models for serving: normalisation folded away, products of one input joined, views avoided."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.gating import Routing, StackedLinear
from moeapps.gating.select import softmax_last
from moeapps.recsys.blocks import ExpertBank, Towers, stacked_linear
from moeapps.recsys.gates import GateBank, GateScores, Level, LevelOutput

Model = TypeVar("Model", bound=nn.Module)

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "silu": F.silu}


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
    for module in served.modules():
        if isinstance(module, ExpertBank):
            module.fold_norm()
    _replace(served)
    return served


def _replace(module: nn.Module) -> None:
    """Put the fast form of every level, tower and bank in its place."""
    for name, child in module.named_children():
        if isinstance(child, Level) and isinstance(child.gate, GateBank):
            setattr(module, name, FusedLevel(child))
        elif isinstance(child, Towers) and not (child.hidden and child.hidden.norms):
            setattr(module, name, FusedTowers(child))
        elif isinstance(child, ExpertBank):
            setattr(module, name, _bank(child))
        else:
            _replace(child)


class FusedBank(nn.Module):
    """Experts without normalisation for serving; inside, experts are the first axis.

    Args:
        layers: Linear maps of all experts, in order.
        acts: The activation behind each.
        sets: As in `ExpertBank`.

    Shape:
        - as `ExpertBank`
    """

    w0: Tensor
    b0: Tensor
    owner: Tensor | None

    def __init__(
        self,
        layers: Sequence[StackedLinear],
        acts: Sequence[Callable[[Tensor], Tensor]],
        sets: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.num_experts, self.acts = layers[0].w.shape[0], acts
        self.names = [(f"w{number}", f"b{number}") for number in range(len(layers))]
        owner = None
        for number, linear in enumerate(layers):
            assert linear.b is not None
            w: Tensor = linear.w
            b: Tensor = linear.b
            if number == 0 and sets is None:
                w, b = w.flatten(0, 1), b.flatten()
            elif number == 0 and sets is not None and len(set(sets)) == 1:
                w, b = w.unflatten(0, (len(sets), -1)).flatten(1, 2), b.view(len(sets), 1, -1)
            else:
                b = b.unsqueeze(1)
                if number == 0 and sets is not None:
                    owner = torch.repeat_interleave(torch.tensor(sets))
            self.register_buffer(f"w{number}", w.transpose(-2, -1).contiguous())
            self.register_buffer(f"b{number}", b)
        self.register_buffer("owner", owner)

    def forward(self, x: Tensor) -> Tensor:
        """Every expert's output for every row, ``[B, E, D]``."""
        if self.w0.dim() == 2:
            return self.after_first(torch.addmm(self.b0, x, self.w0))
        rows = x.expand(len(self.w0), -1, -1) if x.dim() == 2 else x.transpose(0, 1)
        if self.owner is not None:
            rows = rows.index_select(0, self.owner)
        h = torch.baddbmm(self.b0, rows, self.w0)
        if len(h) < self.num_experts:
            h = h.unflatten(2, (self.num_experts // len(h), -1)).transpose(1, 2).flatten(0, 1)
        return self._rest(h)

    def after_first(self, h: Tensor) -> Tensor:
        """Everything behind the first layer's products ``[B, E * width]``."""
        return self._rest(h.unflatten(1, (self.num_experts, -1)).transpose(0, 1))

    def _rest(self, h: Tensor) -> Tensor:
        h = self.acts[0](h)
        for (w, b), act in zip(self.names[1:], self.acts[1:], strict=True):
            h = act(torch.baddbmm(getattr(self, b), h, getattr(self, w)))
        return h.transpose(0, 1)


class FusedTowers(FusedBank):
    """Towers for serving.

    Args:
        towers: In evaluation mode, folded.

    Shape:
        - as `Towers`
    """

    def __init__(self, towers: Towers) -> None:
        layers, acts = _layers(towers.hidden)
        sets = [1] * towers.out.num_experts
        super().__init__([*layers, towers.out], [*acts, _same], sets)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, T]``."""
        return super().forward(x).squeeze(2)


class FusedGate(nn.Module):
    """Gates for serving: hidden experts have zero weights and a bias of minus infinity.

    Args:
        gate: In evaluation mode.

    Shape:
        - as `GateBank`, but the probabilities alone
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, gate: GateBank) -> None:
        super().__init__()
        score = gate.score
        assert isinstance(score, GateScores)
        self.shape = score.visible.shape
        self.bank = None if score.bank is None else _bank(score.bank)
        self.sets = None if score.sets is None else [self.shape[1]] * self.shape[0]
        w, b = score.linear.w.squeeze(1), score.linear.w.new_zeros(len(score.linear.w))
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
        self.experts = _bank(level.experts)
        self.residual, self.gates, self.owners = level.residual, level.gates, level.owners
        assert isinstance(level.gate, GateBank)
        self.gate = FusedGate(level.gate)
        self.split: list[int] | None = None
        bank = self.experts
        if isinstance(bank, FusedBank) and bank.w0.dim() == 2 and self.gate.reads_input:
            self.split = [len(bank.b0), len(self.gate.bias)]
            self.register_buffer("weight", torch.cat([bank.w0, self.gate.weight.t()], 1))
            self.register_buffer("bias", torch.cat([bank.b0, self.gate.bias]))

    def forward(
        self, x: Tensor, gate_input: Tensor | None = None, residual_input: Tensor | None = None
    ) -> LevelOutput:
        """Mix the experts for every gate."""
        seen = x if gate_input is None else gate_input
        if self.split is not None and gate_input is None:
            h, logits = torch.addmm(self.bias, x, self.weight).split(self.split, 1)
            assert isinstance(self.experts, FusedBank)
            experts = self.experts.after_first(h)
            probs = softmax_last(logits.unflatten(1, self.gate.shape))
        else:
            experts, probs = self.experts(x), self.gate(seen)
        weights = probs
        if self.residual is not None:
            weights = probs + self.residual(seen if residual_input is None else residual_input)
        routing = Routing(weights, len(self.owners), probs=probs)
        mixed = torch.bmm(weights, experts)
        return LevelOutput(mixed, experts, routing, self.gates, self.owners)


def _layers(
    bank: ExpertBank | None,
) -> tuple[list[StackedLinear], list[Callable[[Tensor], Tensor]]]:
    if bank is None:
        return [], []
    act = _FUNCTIONS.get(bank.act_name, bank.act)
    return [linear for linear, _ in bank.layers], [act] * len(bank.layers)


def _bank(bank: ExpertBank) -> ExpertBank | FusedBank:
    """The fast form, or the bank itself if it still normalises, as layer normalisation does."""
    return bank if bank.norms else FusedBank(*_layers(bank), bank.sets)


def _same(h: Tensor) -> Tensor:
    return h
