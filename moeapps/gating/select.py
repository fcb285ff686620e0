"""A selection in two readings: computed at once, or with its options bound for a gate."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moeapps.gating.routing import Routing
from moeapps.kernels.select import is_traced


class Select:
    """A selection with its options bound; call it with logits.

    Args:
        rule: One of the functions of :mod:`moeapps.gating.selections`.
        *arguments: What follows ``logits`` in the rule.
        **options: The same by name.

    Example:
        >>> import torch
        >>> from moeapps.gating.selections import topk
        >>> select = topk(2, score="sigmoid")
        >>> select
        topk(top_k=2, score='sigmoid')
        >>> select(torch.tensor([[0.0, 2.0, 1.0]])).indices
        tensor([[1, 2]])
        >>> select(torch.tensor([[0.0, 2.0, 1.0]]), top_k=1).indices
        tensor([[1]])
        >>> select.replace(top_k=3)
        topk(top_k=3, score='sigmoid')
    """

    def __init__(self, rule: Any, *arguments: Any, **options: Any) -> None:
        bound = inspect.signature(rule).bind(None, *arguments, **options).arguments
        self.rule = rule
        self.layout, self.reads_bias, self.ranks = rule.layout, rule.reads_bias, rule.ranks
        self.options = dict(list(bound.items())[1:])

    def __call__(self, logits: Tensor, **options: Any) -> Routing:
        """Select; options given here override the bound ones for this call."""
        return self.rule(logits, **{**self.options, **options})

    def replace(self, **options: Any) -> "Select":
        """A copy with some options changed."""
        return Select(self.rule, **{**self.options, **options})

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.rule.__name__}({options})"


def selection(
    layout: str, *, reads_bias: bool = False, ranks: bool = False
) -> Callable[[Callable[..., Routing]], Callable[..., Any]]:
    """Give a rule its second reading: without logits it returns a :class:`Select`.

    Args:
        layout: Layout of the routings it makes.
        reads_bias: Whether a balance bias can shift its choice.
        ranks: Whether it ranks experts by score, so that equal scores for all rows are a mistake.
    """

    def decorate(rule: Callable[..., Routing]) -> Callable[..., Any]:
        @functools.wraps(rule)
        def choose(*arguments: Any, **options: Any) -> Any:
            if arguments and isinstance(arguments[0], Tensor):
                return rule(*arguments, **options)
            return Select(choose, *arguments, **options)

        vars(choose).update(layout=layout, reads_bias=reads_bias, ranks=ranks)
        return choose

    return decorate


def masked_softmax(logits: Tensor, axis: int = -1) -> Tensor:
    """Softmax in which minus infinity means 0, also where nothing else is left."""
    empty = logits.detach().amax(axis, keepdim=True) == -math.inf
    if empty.is_cpu and not torch.compiler.is_compiling() and not bool(empty.any()):
        # Looking is free on CPU, and saves two passes.
        return softmax_last(logits) if axis == -1 else logits.softmax(axis)
    return logits.masked_fill(empty, 0).softmax(axis).masked_fill(empty, 0)


def softmax_last(logits: Tensor) -> Tensor:
    """Softmax over the last axis.

    On CPU torch takes fewer than 16 numbers one by one, so there the rows change place with the
    experts: 2 to 6 times faster from a few dozen rows on.
    """
    num_experts = logits.shape[-1]
    if is_traced() or not logits.is_cpu or not 1 < num_experts < 16:
        return logits.softmax(-1)
    rows = logits.numel() // num_experts
    if rows < 64:
        return logits.softmax(-1)
    columns = logits.reshape(rows, num_experts).t().contiguous().softmax(0)
    return columns.t().contiguous().view(logits.shape)
