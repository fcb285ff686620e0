"""Which strategy runs, and why.

Order of precedence: the ``strategy`` argument, then ``kernels.use(...)``, then the environment
variable ``MOEAPPS_KERNEL``, then the rule of `choose`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.kernels.networks import Networks, compute_dtype
from moeapps.kernels.scoped import Scoped

STRATEGIES = ("reference", "loop", "grouped", "padded", "dense")
VARIABLE = "MOEAPPS_KERNEL"

_USED: Scoped[str | None] = Scoped("moeapps_kernel", None)


class Choice(NamedTuple):
    """A strategy and the reason it was chosen."""

    strategy: str
    reason: str

    def __str__(self) -> str:
        return f"{self.strategy}: {self.reason}"


@contextmanager
def use(strategy: str) -> Iterator[None]:
    """Run every routed expert inside the block with one strategy.

    Args:
        strategy: One of ``kernels.STRATEGIES``.

    Raises:
        UnknownNameError: There is no such strategy.

    Example:
        >>> with use("dense"):
        ...     print(explain(torch.zeros(4, 8), torch.zeros(4, 1).long(), torch.zeros(2, 8, 8)))
        dense: kernels.use('dense')
    """
    _known(strategy)
    with _USED.set(strategy):
        yield


def choose(
    nets: Networks,
    *,
    dtype: torch.dtype,
    device: torch.device,
    top_k: int,
    strategy: str | None = None,
    capacity: int | None = None,
    traced: bool | None = None,
) -> Choice:
    """Pick the strategy for one routed call.

    Args:
        nets: The experts.
        dtype: Dtype the products run in.
        device: Where the rows are.
        top_k: Experts per row.
        strategy: A wish that wins over everything else.
        capacity: Bound on the rows of one expert, if the gate keeps one.
        traced: Whether a graph is being captured; found out when None.

    Raises:
        UnknownNameError: The wish is not a strategy.
        ArgumentError: The wish cannot run on these inputs.
    """
    traced = is_traced() if traced is None else traced
    wish, reason = _wish(strategy)
    if wish is not None:
        _known(wish)
        problem = illegal(wish, nets, dtype=dtype, traced=traced)
        if problem:
            raise ArgumentError(
                f"Strategy {wish!r}, asked for by {reason}, cannot run here: {problem}. "
                "Choose another one or leave the choice to the library."
            )
        return Choice(wish, reason)

    no_grouped = illegal("grouped", nets, dtype=dtype, traced=traced)
    if traced:
        if not no_grouped:
            return Choice("grouped", "a graph is captured: no host synchronisation")
        if capacity is not None:
            return Choice("padded", f"a graph is captured, and grouped is out: {no_grouped}")
        return Choice(
            "dense",
            f"a graph is captured, no capacity bounds a buffer, and grouped is out: {no_grouped}",
        )
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        if not no_grouped and dtype == torch.bfloat16 and major >= 9:
            return Choice("grouped", "CUDA, bfloat16, compute capability 9.0 or newer")
        return Choice("loop", "CUDA without a fast grouped product; there is no Triton path yet")
    if top_k > 0.75 * nets.num_experts:
        return Choice("dense", f"{top_k} of {nets.num_experts} experts run for every row anyway")
    return Choice("loop", "fastest in eager mode on this device")


def illegal(strategy: str, nets: Networks, *, dtype: torch.dtype, traced: bool) -> str | None:
    """Why ``strategy`` cannot run on such inputs, or None if it can."""
    if traced and strategy in ("reference", "loop"):
        return "it reads group sizes on the host, which a captured graph cannot"
    if strategy == "grouped":
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"grouped_mm has no {str(dtype).removeprefix('torch.')}"
        multiple = 16 // dtype.itemsize
        if any(width % multiple for width in nets.widths):
            return (
                f"widths {list(nets.widths)} must be multiples of {multiple} "
                f"in {str(dtype).removeprefix('torch.')} (rows of 16 bytes)"
            )
    return None


def explain(
    x_ND: Tensor,
    indices_NK: Tensor,
    w1_EFD: Tensor,
    w2_EOF: Tensor | None = None,
    *,
    strategy: str | None = None,
    capacity: int | None = None,
) -> Choice:
    """The strategy `routed_mlp` would use for these tensors, and why, without running it.

    Example:
        >>> x, indices = torch.zeros(4, 8), torch.zeros(4, 1).long()
        >>> print(explain(x, indices, torch.zeros(4, 8, 8)))
        loop: fastest in eager mode on this device
        >>> explain(x, indices, torch.zeros(4, 8, 8), strategy="grouped").strategy
        'grouped'
    """
    return choose(
        Networks(w1_EFD, None, w2_EOF, None),
        dtype=compute_dtype(x_ND),
        device=x_ND.device,
        top_k=indices_NK.shape[-1],
        strategy=strategy,
        capacity=capacity,
    )


def is_traced() -> bool:
    """Whether a graph is being captured (compile, export, or the older tracer)."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def wished() -> str | None:
    """The strategy asked for by ``use`` or the environment, or None; for experts with own paths."""
    wish, _ = _wish(None)
    if wish is not None:
        _known(wish)
    return wish


def _wish(argument: str | None) -> tuple[str | None, str]:
    if argument is not None:
        return argument, f"strategy={argument!r}"
    used = _USED.get()
    if used is not None:
        return used, f"kernels.use({used!r})"
    named = os.environ.get(VARIABLE)
    return named or None, f"{VARIABLE}={named}"


def _known(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise UnknownNameError("kernel strategy", strategy, STRATEGIES)
