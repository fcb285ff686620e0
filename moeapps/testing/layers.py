"""Checks of a single gate or mixture layer."""

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from moeapps import gating
from moeapps.gating import Gate, Routing


def check_gate(gate: Gate, x: Tensor, **inputs: Any) -> Routing:
    """Hold a gate to what every gate promises, on one input.

    The routing obeys the invariants of its layout; scores stay in float32 under autocast; eval mode
    is deterministic; gradients reach the score's parameters (unless frozen); padding rows get
    nothing; the gate can be copied and pickled after use.

    Args:
        gate: The gate; it is left in the mode it came in.
        x: An input without NaN.
        **inputs: More arguments of the gate, such as ``cond``.

    Returns:
        The routing of ``x`` in eval mode.

    Raises:
        AssertionError: Naming what does not hold.

    Example:
        >>> check_gate(Gate.topk(8, 4, 2), torch.randn(5, 8)).layout
        'token'
    """
    was_training = gate.training
    try:
        _check_training(gate, x, inputs)
        gate.eval()
        routing = gate(x, **inputs).check()
        again = gate(x, **inputs)
        _require(torch.equal(routing.weights, again.weights), "two calls in eval mode differ")
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            low = gate(x, **inputs)
        _require(low.weights.dtype == routing.weights.dtype, "autocast lowers the weights' dtype")
        for copied in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
            same = torch.equal(copied(x, **inputs).weights, routing.weights)
            _require(same, "a copy of the gate decides differently")
        _check_padding(gate, x, inputs, routing)
    finally:
        gate.train(was_training)
        gate.zero_grad()
    return routing


def check_moe_layer(layer: nn.Module, x: Tensor, *args: Any, **inputs: Any) -> Routing:
    """Hold a mixture layer to what every layer promises, on one input.

    Output and gradients are finite; ``return_routing=True`` returns the same output and a valid
    routing; :func:`moeapps.gating.record` sees the layer; eval mode is deterministic; state dict,
    copies and pickles carry everything; nothing of a forward pass stays on the module.

    Args:
        layer: A :class:`moeapps.gating.MoE`, or a module with the same ``forward``.
        x: An input without NaN.
        *args: Further inputs of the experts.
        **inputs: Further inputs of the gate.

    Returns:
        The routing of ``x`` in eval mode.

    Raises:
        AssertionError: Naming what does not hold.

    Example:
        >>> from moeapps.gating import MoE, StackedMLP
        >>> layer = MoE(Gate.topk(8, 4, 2), StackedMLP(4, 8, 16, 8))
        >>> check_moe_layer(layer, torch.randn(5, 8)).num_experts
        4
    """
    was_training = layer.training
    try:
        layer.train()
        leaf = x.detach().clone().requires_grad_()
        y = layer(leaf, *args, **inputs)
        _require(bool(y.isfinite().all()), "the output in training is not finite")
        y.square().sum().backward()
        _require(leaf.grad is not None, "no gradient reaches the input")
        for name, parameter in layer.named_parameters():
            finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
            _require(finite, f"the gradient of {name} is not finite")
        _check_nothing_is_kept(layer)
        layer.eval()
        with torch.no_grad():
            y, routing = layer(x, *args, **inputs, return_routing=True)
            routing.check()
            same = torch.equal(layer(x, *args, **inputs), y)
            _require(same, "eval mode is not deterministic, or return_routing changes the output")
            with gating.record(layer) as recording:
                layer(x, *args, **inputs)
            _require(any(recording.routings.values()), "record() does not see the layer")
            other = copy.deepcopy(layer)
            other.load_state_dict(layer.state_dict())
            for copied in (other, pickle.loads(pickle.dumps(layer))):
                same = torch.equal(copied(x, *args, **inputs), y)
                _require(same, "a copy of the layer answers differently")
    finally:
        layer.train(was_training)
        layer.zero_grad()
    return routing


def _check_training(gate: Gate, x: Tensor, inputs: dict[str, Any]) -> None:
    gate.train()
    gate.zero_grad()
    routing = gate(x, **inputs).check()
    learned = [p for p in gate.score.parameters() if p.requires_grad]
    if learned:
        # Random coefficients: a plain sum of normalised weights has no gradient.
        generator = torch.Generator().manual_seed(0)
        coefficients = torch.rand(routing.weights.shape, generator=generator).to(x.device)
        (routing.weights * coefficients).sum().backward()
        reached = any(p.grad is not None and bool(p.grad.any()) for p in learned)
        _require(reached, "no gradient of the weights reaches the score")


def _check_nothing_is_kept(layer: nn.Module) -> None:
    """A tensor with a graph on a module would break copies, pickles and checkpointing."""
    for name, module in layer.named_modules():
        for key, value in vars(module).items():
            parts = vars(value).values() if isinstance(value, Routing) else [value]
            kept = any(isinstance(part, Tensor) and part.grad_fn is not None for part in parts)
            _require(not kept, f"{name or 'the layer'}.{key} keeps a tensor of the forward pass")


def _check_padding(gate: Gate, x: Tensor, inputs: dict[str, Any], whole: Routing) -> None:
    rows = whole.rows
    axes = len(rows) - 1 if whole.layout == "dense" and _has_tasks(whole, x) else len(rows)
    valid = torch.ones(rows[:axes], dtype=torch.bool, device=x.device)
    valid.view(-1)[0] = False
    routing = gate(x, **inputs, valid=valid).check()
    _require(int(routing.counts().sum()) <= int(whole.counts().sum()), "padding rows are counted")
    _require(bool((routing.dense()[~valid] == 0).all()), "padding rows get weight")


def _has_tasks(routing: Routing, x: Tensor) -> bool:
    return len(routing.rows) >= x.ndim


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
