"""Experts and towers of multi-gate models, with stacked parameters ``[E, out, in]``.

Letters: ``B`` batch, ``E`` experts, ``S`` input sets, ``T`` tasks, ``D`` width.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import StackedLinear
from moeapps.gating.stacked import activation
from moeapps.kernels.select import is_traced
from moeapps.recsys.norm import StackedNorm
from moeapps.recsys.schema import Task

Backend = Literal["auto", "batched", "loop"]
Norm = Literal["batch", "layer"] | None
NARROW = 16  # outputs, below which a matrix product is better computed the other way round
LARGEST_BATCHED = 131_072  # rows times widest layer: 256 rows of 512 units


class ExpertBank(nn.Module):
    r"""``E`` multilayer experts with stacked weights.

    .. math:: h \leftarrow \mathrm{dropout}(\mathrm{act}(\mathrm{norm}(W_e h + b_e)))

    for every layer. Experts that read the same input run their first layer as one matrix product of
    all their units together; the input is never repeated.

    Args:
        experts: ``E`` experts that all read one input, or the number of experts of each of ``S``
            input sets.
        in_features: Width of an input.
        widths: Width of each layer.
        norm: ``"batch"``, ``"layer"`` or None.
        act: A name from :data:`moeapps.gating.stacked.ACTIVATIONS`.
        dropout: After each activation.
        sync_norm: As ``sync`` of `StackedNorm`.
        backend: ``"batched"`` runs all experts together, ``"loop"`` one after another; both use the
            same parameters. ``"auto"`` loops only in training on CPU with more than 131,072 rows
            times units, where an expert's activations would leave the cache.

    Shape:
        - ``[B, D]``, read by all, or with sets ``[B, S, D]`` -> ``[B, E, widths[-1]]``

    Raises:
        ArgumentError: No experts or no layer; a batch of one in training with ``norm="batch"``.

    Notes:
        Each expert starts as its own ``nn.Linear`` layers would.

    Example:
        >>> ExpertBank(4, 8, [16, 6])(torch.randn(5, 8)).shape
        torch.Size([5, 4, 6])
        >>> ExpertBank([2, 1], 8, [16, 6], norm="batch")(torch.randn(5, 2, 8)).shape
        torch.Size([5, 3, 6])
    """

    def __init__(
        self,
        experts: int | Sequence[int],
        in_features: int,
        widths: Sequence[int],
        *,
        norm: Norm = None,
        act: str = "relu",
        dropout: float = 0.0,
        sync_norm: bool = False,
        backend: Backend = "auto",
    ) -> None:
        sets = None if isinstance(experts, int) else list(experts)
        super().__init__()
        self.num_experts = experts if isinstance(experts, int) else sum(experts)
        if min([*widths, *(sets or [self.num_experts])], default=0) < 1 or not widths:
            raise ArgumentError(
                f"experts={experts}, widths={list(widths)} make no experts. Expected one layer or "
                "more, and one expert or more per input set."
            )
        if backend not in ("auto", "batched", "loop"):
            raise UnknownNameError("backend", backend, ("auto", "batched", "loop"))
        if not 0 <= dropout < 1:
            raise ArgumentError(f"dropout={dropout} is not a probability below 1.")
        self.sets, self.dropout, self.backend = sets, dropout, backend
        self.sync_norm = sync_norm
        self.act_name, self.act = act, activation(act)
        self.widths = tuple(widths)
        self.linears, self.norms = nn.ModuleList(), nn.ModuleList()
        for width, following in itertools.pairwise([in_features, *widths]):
            self.linears.append(StackedLinear(self.num_experts, width, following))
            if norm is not None:
                self.norms.append(StackedNorm(norm, self.num_experts, following, sync=sync_norm))

    @property
    def layers(self) -> list[tuple[StackedLinear, StackedNorm | None]]:
        """Linear maps and normalisation of each layer."""
        norms = self.norms or [None] * len(self.linears)
        pairs = list(zip(self.linears, norms, strict=True))
        return cast(list[tuple[StackedLinear, StackedNorm | None]], pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Every expert's output for every row, ``[B, E, D]``."""
        if self._loops(x):
            ys = [f(one) for f, one in zip(self.functions(), self._inputs(x), strict=True)]
            return torch.stack(ys, dim=1)
        first = self.layers[0][0]
        return self.after_first(stacked_linear(x, first.w, first.b, self.sets))

    def after_first(self, h: Tensor) -> Tensor:
        """Everything behind the first layer's products ``[B, E * width]``."""
        for number, (linear, norm) in enumerate(self.layers):
            if number > 0:
                h = stacked_linear(h.unflatten(1, (self.num_experts, -1)), linear.w, linear.b)
            if norm is not None:
                h = norm(h)
            h = self._finish(h)
        return h.unflatten(1, (self.num_experts, -1))

    def functions(self) -> list[Callable[[Tensor], Tensor]]:
        """One callable per expert, ``[B, D] -> [B, widths[-1]]``."""
        steps: list[Sequence[Callable[[Tensor], Tensor]]] = []
        for linear, norm in self.layers:
            steps.append(linear.functions())
            if norm is not None:
                steps.append(norm.functions())
            steps.append([self._finish] * self.num_experts)
        return [_Chain(own) for own in zip(*steps, strict=True)]

    def _finish(self, h: Tensor) -> Tensor:
        h = self.act(h)
        return F.dropout(h, self.dropout) if self.training and self.dropout else h

    def _inputs(self, x: Tensor) -> list[Tensor]:
        if x.dim() == 2 or self.sets is None:
            return [x] * self.num_experts
        inputs = zip(x.unbind(1), self.sets, strict=True)
        return [one for one, count in inputs for _ in range(count)]

    def _loops(self, x: Tensor) -> bool:
        if self.backend != "auto":
            return self.backend == "loop"
        # Processes that synchronise must take the same path, whatever their number of rows.
        if is_traced() or not x.is_cpu or not torch.is_grad_enabled() or self.sync_norm:
            return False
        return x.shape[0] * max(self.widths) > LARGEST_BATCHED

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Put batch normalisation into the weights before it; equal in evaluation mode only."""
        for linear, norm in self.layers:
            if norm is None or norm.kind == "layer":
                return
            scale, shift = norm.scale_and_shift()
            assert linear.b is not None
            linear.w.mul_(scale.unsqueeze(2))
            linear.b.mul_(scale).add_(shift)
        self.norms = nn.ModuleList()

    def to_expert_list(self) -> list[nn.Sequential]:
        """Separate networks with copies of the weights: linear, norm, activation, dropout."""
        steps: list[Sequence[nn.Module]] = []
        for linear, norm in self.layers:
            steps.append(linear.to_modules())
            if norm is not None:
                steps.append(norm.to_modules())
            steps.append([cast(nn.Module, activation(self.act_name))] * self.num_experts)
            steps.append([nn.Dropout(self.dropout)] * self.num_experts)
        return [nn.Sequential(*own).train(self.training) for own in zip(*steps, strict=True)]

    def from_expert_list(self, experts: Sequence[nn.Module]) -> Self:
        """Copy the weights of separate networks, of the kind :meth:`to_expert_list` gives.

        Raises:
            ArgumentError: Their number, layers or sizes differ from those here.
        """
        for number, (linear, norm) in enumerate(self.layers):
            linear.load_modules([self._part(expert, nn.Linear, number) for expert in experts])
            if norm is not None:
                kind = nn.BatchNorm1d if norm.kind == "batch" else nn.LayerNorm
                norm.load_modules([self._part(expert, kind, number) for expert in experts])
        return self

    def _part(self, expert: nn.Module, kind: type[nn.Module], number: int) -> nn.Module:
        found = [part for part in expert.modules() if isinstance(part, kind)]
        if len(found) != len(self.linears):
            raise ArgumentError(
                f"{type(expert).__name__} holds {len(found)} {kind.__name__}, expected "
                f"{len(self.linears)}. Give networks of the kind to_expert_list() returns."
            )
        return found[number]


class _Chain:
    """One expert of a bank as a function."""

    def __init__(self, steps: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.steps = steps

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Towers(nn.Module):
    r"""One small network per task, from its representation to its logit.

    Args:
        tasks: ``T`` of them.
        in_features: Width of a representation.
        widths: Widths of hidden layers; none for a linear map.
        norm: As in `ExpertBank`.
        dropout: After each activation.
        sync_norm: As in `ExpertBank`.
        backend: As in `ExpertBank`.
        init_output_bias: Start the bias of a binary task at the logit of its base rate; None does
            so for base rates below 0.05, from where 0 is far.

    Shape:
        - ``[B, T, D]``, or ``[B, D]`` that all tasks read ``-> [B, T]``

    Example:
        >>> Towers([Task("click"), Task("like")], 8, [4])(torch.zeros(5, 2, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        in_features: int,
        widths: Sequence[int] = (64,),
        *,
        norm: Norm = None,
        dropout: float = 0.0,
        sync_norm: bool = False,
        backend: Backend = "auto",
        init_output_bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.hidden: ExpertBank | None = None
        if widths:
            sets = [1] * len(tasks)
            self.hidden = ExpertBank(
                sets,
                in_features,
                widths,
                norm=norm,
                dropout=dropout,
                sync_norm=sync_norm,
                backend=backend,
            )
            in_features = widths[-1]
        self.out = StackedLinear(len(tasks), in_features, 1)
        assert self.out.b is not None
        for t, task in enumerate(tasks):
            rate = task.base_rate if task.type == "binary" else None
            if rate is not None and (rate < 0.05 if init_output_bias is None else init_output_bias):
                nn.init.constant_(self.out.b[t], math.log(rate / (1 - rate)))

    def forward(self, z: Tensor) -> Tensor:
        """Logits of every task."""
        h = z if self.hidden is None else self.hidden(z)
        if h.dim() == 2:
            return stacked_linear(h, self.out.w, self.out.b)
        # One number per task: a product of one column is slower than multiplying and adding.
        assert self.out.b is not None
        return (h * self.out.w.squeeze(1)).sum(2) + self.out.b.squeeze(1)


class _NarrowProduct(torch.autograd.Function):
    """``x @ w.T`` per set for few outputs, as products with many columns.

    A product with a few columns runs at a fraction of the speed, so the output is formed as
    ``(w @ x.T).T`` and the gradient of ``w`` as ``grad.T @ x``, where autograd would take
    ``(x.T @ grad).T``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(w, x.transpose(1, 2)).transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return torch.bmm(grad, w), torch.bmm(grad.transpose(1, 2), x)


def batched_linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """One linear map per set, ``[S, B, D], [S, O, D], [S, 1, O] -> [S, B, O]``."""
    autocast = torch.is_autocast_enabled(x.device.type)  # it ends before the backward pass
    if w.shape[1] < NARROW and torch.is_grad_enabled() and not autocast and not is_traced():
        y: Tensor = _NarrowProduct.apply(x, w)
        return y if b is None else y + b
    if b is None:
        return torch.bmm(x, w.transpose(1, 2))
    return torch.baddbmm(b, x, w.transpose(1, 2))


def stacked_linear(
    x: Tensor, w: Tensor, b: Tensor | None = None, sets: Sequence[int] | None = None
) -> Tensor:
    """Linear maps of several experts, side by side.

    Args:
        x: ``[B, D]``, read by all; or ``[B, S, D]``.
        w: ``[E, O, D]``.
        b: ``[E, O]``.
        sets: How many experts read each of the ``S`` inputs; one each if None.

    Shape:
        - ``-> [B, E * O]``
    """
    if x.dim() == 2:
        return F.linear(x, w.flatten(0, 1), None if b is None else b.flatten())
    width = w.shape[1]
    parts, first, expert = [], 0, 0
    for count, run in itertools.groupby([1] * w.shape[0] if sets is None else sets):
        num = len(list(run))  # neighbouring inputs with equally many experts: one batched product
        own = slice(expert, expert + num * count)
        rows = x[:, first : first + num].transpose(0, 1)
        maps = w[own].reshape(num, count * width, -1)
        shift = None if b is None else b[own].view(num, 1, count * width)
        y = batched_linear(rows, maps, shift)
        parts.append(y.transpose(0, 1).reshape(x.shape[0], num * count * width))
        first, expert = first + num, expert + num * count
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
