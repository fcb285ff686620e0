"""Gate: score, perturb, mask, select; and the ready-made ones."""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from moeapps.errors import ArgumentError, GateError
from moeapps.gating.balance import BalanceBias
from moeapps.gating.perturbations import Perturbation
from moeapps.gating.routing import Routing, mask_rows
from moeapps.gating.scores import Conv, Linear, Tasks
from moeapps.gating.selections import ExpertChoice, soft_slots, softmax, topk
from moeapps.gating.similarity_scores import Slots


class Gate(nn.Module):
    r"""Decides which experts serve which row.

    .. math:: \mathrm{routing} = \mathrm{select}\big(\mathrm{perturb}(\mathrm{score}(x) / \tau)\big)

    Everything happens in float32 (float64 for float64 inputs), also under autocast. The
    perturbation acts in training only, masked experts get logits of minus infinity, and padding
    rows weight 0.

    Args:
        score: Any module from ``x`` to logits ``[*L, E]``; see :mod:`moeapps.gating.scores`.
        select: Any callable ``select(logits, bias=, valid=, generator=)`` that returns a
            :class:`Routing`; see :mod:`moeapps.gating.selections`.
        perturb: Noise; see :mod:`moeapps.gating.perturbations`.
        balance: A bias that evens the load. Call :func:`moeapps.gating.step` once per step.
        temperature: ``tau``. A schedule may assign a new number at any time: it is kept in the
            buffer ``tau``, so neither compiled code nor checkpoints notice.
        mask: bool, broadcast against the logits; False switches an expert off.
        on_nan: What a row of NaN scores does. ``"propagate"``: that row alone gets NaN weights.
            ``"raise"``: :class:`GateError`, at the price of one synchronisation; not checked while
            compiling.

    Shape:
        - x ``[*L, D]`` or what the score takes; cond, state: what the score takes
        - valid bool ``[*L]``, False for padding

    Raises:
        ArgumentError: For a temperature that is not positive, a mask that is not bool, a bias that
            the selection cannot use, or a score that starts at zero in front of a selection that
            ranks experts: it would send every row to the same ones.

    Notes:
        Half-precision conversion of a whole model leaves the gate in float32.

    Example:
        >>> gate = Gate(Linear(16, 8), topk(2, score="sigmoid"), balance=BalanceBias(8))
        >>> routing = gate(torch.randn(5, 16))
        >>> routing.weights.shape, routing.layout
        (torch.Size([5, 2]), 'token')
    """

    tau: Tensor
    mask: Tensor | None

    def __init__(
        self,
        score: nn.Module,
        select: Callable[..., Routing],
        *,
        perturb: Perturbation | None = None,
        balance: BalanceBias | None = None,
        temperature: float = 1.0,
        mask: Tensor | None = None,
        on_nan: Literal["propagate", "raise"] = "propagate",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ArgumentError(f"temperature={temperature} must be positive.")
        if mask is not None and mask.dtype != torch.bool:
            raise ArgumentError(f"mask is {mask.dtype}, expected bool: True where allowed.")
        if balance is not None and not getattr(select, "reads_bias", True):
            raise ArgumentError(
                f"balance has no effect on {select!r}, which chooses no experts by score. "
                "Use topk or hard, or leave balance out."
            )
        if on_nan not in ("propagate", "raise"):
            raise ArgumentError(f"on_nan={on_nan!r} is unknown. Choose 'propagate' or 'raise'.")
        if getattr(select, "ranks", False):
            _refuse_zeros(score)
        self.score, self.select = score, select
        self.perturb, self.balance = perturb, balance
        self.on_nan = on_nan
        self.register_buffer("tau", torch.tensor(float(temperature)))
        self.register_buffer("mask", mask)
        accepted = inspect.signature(score.forward).parameters
        self._inputs = tuple(n for n in ("cond", "state", "valid") if n in accepted)

    @property
    def temperature(self) -> Tensor:
        """The temperature, a scalar tensor; assign a number to change it."""
        return self.tau

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.tau.fill_(value)

    def forward(
        self,
        x: Tensor,
        *,
        cond: Tensor | None = None,
        valid: Tensor | None = None,
        state: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Routing:
        """Decide for every row of ``x``."""
        inputs = {"cond": cond, "state": state, "valid": valid}
        for name in ("cond", "state"):
            if inputs[name] is not None and name not in self._inputs:
                raise GateError(
                    f"gate got {name}, which its score {type(self.score).__name__} does not take. "
                    f"Leave it out, or use a score whose forward has an argument {name!r}."
                )
        with _no_autocast(x.device.type):
            if x.is_floating_point():
                x = _at_least_float32(x)
            if valid is not None:
                x = self._without_padding(x, valid)
            return self._decide(x, {name: inputs[name] for name in self._inputs}, valid, generator)

    def _decide(
        self,
        x: Tensor,
        inputs: dict[str, Tensor | None],
        valid: Tensor | None,
        generator: Generator | None,
    ) -> Routing:
        def score(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            scored = self.score(x, **inputs)
            logits, extra = scored if isinstance(scored, tuple) else (scored, {})
            return _at_least_float32(logits), extra

        perturb = self.perturb if self.training else None
        clean, extra = score(x) if perturb is None else perturb.around(score, x, generator)
        if self.on_nan == "raise" and not torch.compiler.is_compiling():
            _refuse_nan(clean)
        logits = clean if self._unit_temperature() else clean / self.tau
        if perturb is not None:
            logits, noise = perturb(logits, x, generator)
            extra = {**extra, **{name: part * self.tau for name, part in noise.items()}}
        if self.mask is not None:
            logits = torch.where(self.mask, logits, -math.inf)
        bias = None if self.balance is None else self.balance.bias
        routing = self.select(logits, bias=bias, valid=valid, generator=generator)
        if routing.valid is None:
            routing = mask_rows(routing, valid)
        if routing.layout == "slot":
            if logits is clean and routing.logits is not None:
                clean = routing.logits  # the selection has them already
            else:
                clean = clean.logsumexp(-1)
        routing = dataclasses.replace(routing, logits=clean, extra={**extra, **routing.extra})
        if self.balance is not None:
            self.balance.observe(routing)
        return routing

    def _unit_temperature(self) -> bool:
        """Whether dividing can be skipped; asked only where looking is free."""
        if torch.compiler.is_compiling() or not self.tau.is_cpu:
            return False
        return self.tau.item() == 1

    def _without_padding(self, x: Tensor, valid: Tensor) -> Tensor:
        """Zeros in padding rows, so that NaN there reaches no gradient."""
        if getattr(self.score, "channels_first", False):
            valid = valid.unsqueeze(1)
        return torch.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, 0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Gate":
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(device=moved.device, dtype=torch.float32)
            return moved

        return super()._apply(keep_float32, recurse)

    @classmethod
    def topk(
        cls,
        in_features: int,
        num_experts: int,
        top_k: int,
        *,
        score: Literal["softmax", "sigmoid", "identity"] = "softmax",
        normalise: bool | None = None,
        null: int = 0,
        **options: Any,
    ) -> "Gate":
        """A linear gate whose rows take their ``top_k`` best experts.

        Example:
            >>> Gate.topk(16, 8, 2)(torch.randn(5, 16)).indices.shape
            torch.Size([5, 2])
        """
        select = topk(top_k, score=score, normalise=normalise, null=null)
        return cls(Linear(in_features, num_experts + null), select, **options)

    @classmethod
    def softmax(
        cls, in_features: int, num_experts: int, *, tasks: int | None = None, **options: Any
    ) -> "Gate":
        """A linear gate that mixes all experts, once per task if there are tasks.

        Example:
            >>> Gate.softmax(16, 8, tasks=3)(torch.randn(5, 16)).weights.shape
            torch.Size([5, 3, 8])
        """
        if tasks is None:
            return cls(Linear(in_features, num_experts), softmax, **options)
        return cls(Tasks(in_features, num_experts, tasks), softmax, **options)

    @classmethod
    def pixel(
        cls, in_channels: int, num_experts: int, *, kernel_size: int = 1, **options: Any
    ) -> "Gate":
        """A convolutional gate that mixes all experts, once per pixel.

        Example:
            >>> Gate.pixel(16, 8)(torch.randn(2, 16, 5, 5)).weights.shape
            torch.Size([2, 5, 5, 8])
        """
        return cls(Conv(in_channels, num_experts, kernel_size), softmax, **options)

    @classmethod
    def expert_choice(
        cls,
        in_features: int,
        num_experts: int,
        *,
        capacity: float = 2,
        at_test: Literal["group", "threshold"] = "group",
        **options: Any,
    ) -> "Gate":
        """A linear gate whose experts take their best rows of each group.

        Example:
            >>> Gate.expert_choice(16, 4)(torch.randn(2, 10, 16)).indices.shape
            torch.Size([2, 4, 5])
        """
        select = ExpertChoice(num_experts, capacity, at_test=at_test)
        return cls(Linear(in_features, num_experts), select, **options)

    @classmethod
    def soft(
        cls,
        in_features: int,
        num_experts: int,
        num_slots: int | None = None,
        *,
        num_rows: int | None = None,
        **options: Any,
    ) -> "Gate":
        """A gate of soft slots; without ``num_slots``, ``num_rows / num_experts`` of them.

        Example:
            >>> Gate.soft(16, 4, num_rows=8)(torch.randn(2, 8, 16)).dispatch.shape
            torch.Size([2, 8, 4, 2])
        """
        if num_slots is None:
            if num_rows is None:
                raise ArgumentError(
                    "Gate.soft got no number of slots. Give num_slots, or num_rows of a group."
                )
            num_slots = max(1, round(num_rows / num_experts))
        return cls(Slots(in_features, num_experts, num_slots), soft_slots, **options)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _refuse_nan(logits: Tensor) -> None:
    broken = logits.isnan() | (logits == math.inf)
    if bool(broken.any()):
        rows = int(broken.flatten(1).any(1).sum())
        raise GateError(
            f"gate scores of {rows} row(s) are not finite. Expected finite inputs and parameters; "
            "look for NaN in the data or a diverged loss."
        )


def _refuse_zeros(score: nn.Module) -> None:
    parameters = [p for p in score.parameters() if p.numel() and not p.is_meta]
    matrices = [p for p in parameters if p.ndim >= 2]
    if any(not bool(p.any()) for p in matrices) or (
        parameters and not any(map(torch.any, parameters))
    ):
        raise ArgumentError(
            f"score {type(score).__name__} starts at zero, so every row would take the same "
            "experts. Start its weights at random, for example N(0, 0.02)."
        )
