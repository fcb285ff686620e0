"""Optimisers with a rate of their own for gates and experts, and learning-rate schedules."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from moeapps import gating
from moeapps.errors import ArgumentError, UnknownNameError

Role = Literal["gates", "experts", "rest"]
_ROLES: tuple[Role, ...] = ("gates", "experts", "rest")
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
# Stacked experts keep one bias row per expert, so a bias cannot be told by its number of axes.
_BIAS_NAMES = ("bias", "b1", "b2")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    gates: dict[str, float] | None = None,
    experts: dict[str, float] | None = None,
    gate_modules: Iterable[nn.Module] = (),
    expert_modules: Iterable[nn.Module] = (),
) -> list[dict[str, Any]]:
    """Split the parameters into gates, experts and the rest, each with and without weight decay.

    Gates are all :class:`moeapps.gating.Gate` modules, experts those of all
    :class:`moeapps.gating.MoE` layers. Biases, normalisation layers and other parameters with fewer
    than two axes get no weight decay. Frozen parameters are left out; shared ones appear once.

    Args:
        model: Any module.
        lr: Learning rate where nothing else is said.
        weight_decay: Weight decay where nothing else is said.
        gates: Own ``lr`` and ``weight_decay`` for gates.
        experts: Own ``lr`` and ``weight_decay`` for experts.
        gate_modules: More modules to count as gates, for models without ``Gate``.
        expert_modules: More modules to count as experts, for models without ``MoE``.

    Returns:
        Groups for a torch optimiser, empty ones left out, each with a ``name``: ``"gates"``,
        ``"gates/no_decay"`` and so on.

    Raises:
        ArgumentError: ``gates`` or ``experts`` has another key.

    Example:
        >>> from moeapps.gating import Gate, MoE, StackedMLP
        >>> model = MoE(Gate.topk(4, 3, 2), StackedMLP(3, 4, 8, 4))
        >>> groups = parameter_groups(model, lr=1e-3, weight_decay=0.1, gates={"lr": 1e-4})
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('gates', 0.0001, 0.1), ('experts', 0.001, 0.1), ('experts/no_decay', 0.001, 0.0)]
    """
    own = {"gates": gates or {}, "experts": experts or {}, "rest": {}}
    for role, options in own.items():
        for key in options:
            if key not in ("lr", "weight_decay"):
                raise ArgumentError(f"{role} has the option {key!r}. Choose lr or weight_decay.")
    roles = _parameter_roles(model, list(gate_modules), list(expert_modules))
    split: dict[tuple[Role, bool], list[nn.Parameter]] = {}
    for parameter, decays in _parameters(model):
        split.setdefault((roles.get(parameter, "rest"), decays), []).append(parameter)
    return [
        {
            "name": role if decays else f"{role}/no_decay",
            "params": split[role, decays],
            "lr": own[role].get("lr", lr),
            "weight_decay": own[role].get("weight_decay", weight_decay) if decays else 0.0,
        }
        for role in _ROLES
        for decays in (True, False)
        if (role, decays) in split
    ]


def build_optimizer(
    model: nn.Module, name: str = "adamw", *, lr: float, weight_decay: float = 0.0, **options: Any
) -> torch.optim.Optimizer:
    """An optimiser over :func:`parameter_groups`.

    Args:
        model: Any module.
        name: ``"adamw"``, ``"adam"`` or ``"sgd"``.
        lr: Learning rate.
        weight_decay: Weight decay.
        **options: ``gates``, ``experts``, ``gate_modules`` and ``expert_modules`` go to
            :func:`parameter_groups`, all others to the optimiser.

    Raises:
        UnknownNameError: With the closest names.

    Example:
        >>> optimizer = build_optimizer(nn.Linear(2, 1), "sgd", lr=0.1, momentum=0.9)
        >>> optimizer.defaults["momentum"]
        0.9
    """
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimiser", name, OPTIMIZERS)
    ours = ("gates", "experts", "gate_modules", "expert_modules")
    grouping = {key: options.pop(key) for key in ours if key in options}
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, **grouping)
    return OPTIMIZERS[name](groups, lr=lr, weight_decay=weight_decay, **options)  # type: ignore[call-arg]


def build_schedule(
    optimizer: torch.optim.Optimizer,
    name: str = "constant",
    *,
    warmup_steps: int = 0,
    total_steps: int | None = None,
    final: float = 0.0,
) -> LambdaLR:
    r"""Learning-rate schedule with a linear warm-up; step it once per optimiser step.

    .. math:: \lambda(t) = \begin{cases} (t + 1) / w & t < w \\
        1 & \text{constant} \\
        r + (1 - r) \tfrac12 \Big(1 + \cos \pi \tfrac{t - w}{T - w}\Big) & \text{cosine}
        \end{cases}

    Args:
        optimizer: Each group keeps its own base rate.
        name: ``"constant"`` or ``"cosine"``.
        warmup_steps: :math:`w`.
        total_steps: :math:`T`; needed for cosine.
        final: :math:`r`, share of the rate left at the end.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: Cosine without ``total_steps``, or a warm-up longer than the run.

    Example:
        >>> optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        >>> schedule = build_schedule(optimizer, "cosine", warmup_steps=2, total_steps=6)
        >>> rates = []
        >>> for _ in range(7):
        ...     rates.append(round(schedule.get_last_lr()[0], 3))
        ...     optimizer.step(); schedule.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if name not in ("constant", "cosine"):
        raise UnknownNameError("schedule", name, ("constant", "cosine"))
    if name == "cosine" and (total_steps is None or total_steps <= warmup_steps):
        raise ArgumentError(
            f"the cosine schedule got total_steps={total_steps} and warmup_steps={warmup_steps}. "
            "Pass the number of optimiser steps of the run, larger than the warm-up."
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if name == "constant" or total_steps is None:
            return 1.0
        done = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, factor)


def _parameters(model: nn.Module) -> list[tuple[nn.Parameter, bool]]:
    """Each trained parameter once, and whether weight decay applies to it."""
    found: dict[nn.Parameter, bool] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = (
                parameter.ndim >= 2 and name not in _BIAS_NAMES and not isinstance(module, _NORMS)
            )
            if parameter.requires_grad:
                found[parameter] = plain
    return list(found.items())


def _parameter_roles(
    model: nn.Module, gate_modules: list[nn.Module], expert_modules: list[nn.Module]
) -> dict[nn.Parameter, Role]:
    for module in model.modules():
        if isinstance(module, gating.Gate):
            gate_modules.append(module)
        elif isinstance(module, gating.MoE) and isinstance(module.experts, nn.Module):
            expert_modules.append(module.experts)
    roles: dict[nn.Parameter, Role] = {}
    for module in expert_modules:
        roles.update(dict.fromkeys(module.parameters(), "experts"))
    for module in gate_modules:  # a gate inside an expert is a gate
        roles.update(dict.fromkeys(module.parameters(), "gates"))
    return roles
