"""``torch.nn.functional.grouped_mm`` over sorted rows. The default when traced and in CUDA bf16.

One product per layer whatever the number of experts, and no host synchronisation: it compiles and
exports with a dynamic number of rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.kernels.autograd import contiguous_grad, mask_grad
from moeapps.kernels.networks import Networks
from moeapps.kernels.select import is_traced


@torch.library.custom_op("moeapps::grouped_linear", mutates_args=())
def _grouped_linear(x_RD: Tensor, w_EOD: Tensor, offsets_E: Tensor) -> Tensor:
    """``grouped_mm`` as an operator of our own.

    The built-in's shape inference accepts only half precision although the operator itself takes
    float32, so a float32 graph could not be captured with it. A program exported this way needs
    ``import moeapps.kernels`` before it is loaded.
    """
    return F.grouped_mm(x_RD, w_EOD.transpose(1, 2), offs=offsets_E)


@_grouped_linear.register_fake
def _(x_RD: Tensor, w_EOD: Tensor, offsets_E: Tensor) -> Tensor:
    return x_RD.new_empty(x_RD.shape[0], w_EOD.shape[1])


@torch.library.custom_op("moeapps::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(
    grad_RO: Tensor, x_RD: Tensor, w_EOD: Tensor, offsets_E: Tensor
) -> tuple[Tensor, Tensor]:
    grad_RO = grad_RO.contiguous()
    grad_x = F.grouped_mm(grad_RO, w_EOD, offs=offsets_E)
    grad_w = F.grouped_mm(grad_RO.t(), x_RD, offs=offsets_E)
    return grad_x, grad_w


@_grouped_linear_backward.register_fake
def _(grad_RO: Tensor, x_RD: Tensor, w_EOD: Tensor, offsets_E: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_RD), w_EOD.new_empty(w_EOD.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor, Tensor, None]:
    return (*_grouped_linear_backward(grad_RO, *ctx.saved_tensors), None)


_grouped_linear.register_autograd(_backward, setup_context=_save)


def sorted_rows(rows_RD: Tensor, experts_R: Tensor, offsets_E: Tensor, nets: Networks) -> Tensor:
    """Apply ``E`` stacked networks to rows sorted by expert; rows past the last offset give zero.

    Args:
        rows_RD: Rows sorted by expert.
        experts_R: Expert id of each row, ``E`` past the last offset.
        offsets_E: End of each expert's rows, int32.
        nets: The networks.

    Returns:
        ``[R, O]``
    """
    keep = experts_R < nets.num_experts
    # On CPU in eager code looking is free, and mostly everybody belongs to somebody.
    whole = keep.is_cpu and not is_traced() and bool(keep[-1:].all())
    if not whole:
        rows_RD = mask_grad(rows_RD, keep)
    y = _linear(rows_RD, experts_R, offsets_E, nets.w1, nets.b1)
    if nets.w2 is not None:
        y = _linear(nets.activate(y), experts_R, offsets_E, nets.w2, nets.b2)
    # where, not a product: the rows past the last offset are uninitialised memory.
    return y if whole else torch.where(keep.unsqueeze(1), y, 0)


def _linear(
    x_RD: Tensor, experts_R: Tensor, offsets_E: Tensor, w: Tensor, b: Tensor | None
) -> Tensor:
    x_RD = x_RD.contiguous()
    if x_RD.dtype == torch.float32 and is_traced():
        y = _grouped_linear(x_RD, w, offsets_E)
    else:
        y = F.grouped_mm(x_RD, w.transpose(1, 2), offs=offsets_E)
    if b is not None:
        _add_bias(y, b, experts_R, offsets_E)
    return contiguous_grad(y)


def _add_bias(y_RO: Tensor, b_EO: Tensor, experts_R: Tensor, offsets_E: Tensor) -> None:
    """Add each row its expert's bias, in place: a fresh output is as dear as the sum."""
    if y_RO.is_cpu and not torch.is_grad_enabled() and not is_traced():
        ends = offsets_E.tolist()
        for start, end, b in zip([0, *ends], ends, b_EO, strict=False):
            y_RO[start:end].add_(b)
        return
    # The extra row takes the meaningless gradient of rows that belong to nobody.
    y_RO.add_(F.pad(b_EO, (0, 0, 0, 1)).index_select(0, experts_R))
