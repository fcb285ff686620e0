"""Small autograd pass-throughs the strategies need; each leaves the forward value unchanged."""

from typing import Any

import torch
from torch import Tensor


class _ContiguousGrad(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


def contiguous_grad(x: Tensor) -> Tensor:
    """Identity whose gradient is contiguous.

    ``grouped_mm`` refuses a gradient with zero or non-unit strides, which is what ``sum()`` and
    ``expand`` produce.
    """
    return _ContiguousGrad.apply(x)


class _MaskGrad(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, keep: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return torch.where(keep.unsqueeze(-1), grad, 0), None


def mask_grad(x_RD: Tensor, keep_R: Tensor) -> Tensor:
    """Identity whose gradient is zero in rows that are not kept.

    ``grouped_mm`` leaves the input gradient of rows past the last offset uninitialised, so the
    gradient has to be replaced, not multiplied by zero.
    """
    return _MaskGrad.apply(x_RD, keep_R)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, rows: Tensor, inverse: Tensor, per_row: int) -> Tensor:
        return x.index_select(0, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, inverse, ctx.per_row = inputs
        ctx.save_for_backward(inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        back = grad.index_select(0, inverse)
        shape = (back.shape[0] // ctx.per_row, ctx.per_row, *back.shape[1:])
        return back.view(shape).sum(1), None, None, None


def gather_rows(x: Tensor, rows_R: Tensor, inverse_R: Tensor, per_row: int) -> Tensor:
    """``x.index_select(0, rows)`` whose backward gathers and sums instead of adding atomically.

    Deterministic on CUDA; on CPU the built-in backward is faster, so it is used there.
    """
    return _GatherRows.apply(x, rows_R, inverse_R, per_row)


class _Touch(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, *parameters: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return (grad, *(torch.zeros_like(p) for p in ctx.saved_tensors))


def touch(y: Tensor, parameters: list[Tensor]) -> Tensor:
    """Identity on ``y`` that gives ``parameters`` an exact zero gradient.

    An expert without rows takes no part in the graph, and distributed training then waits for its
    gradients for ever. Adding ``0 * p.sum()`` would do, but is NaN once a weight is infinite.
    """
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters or not torch.is_grad_enabled():
        return y
    return _Touch.apply(y, *parameters)
