"""Convolution experts: each image goes through the kernels of the experts it chose."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.kernels import loop, reference
from moeapps.kernels.networks import compute_dtype
from moeapps.kernels.select import is_traced

CONV_STRATEGIES = ("loop", "gathered", "reference")


def routed_conv2d(
    x_BCHW: Tensor,
    indices_BK: Tensor,
    weights_BK: Tensor,
    w_EOIkk: Tensor,
    b_EO: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    strategy: str | None = None,
) -> Tensor:
    r"""Weighted sum of the convolutions each image chose.

    .. math:: y_b = \sum_k w_{bk}\,(W_e * x_b + b_e), \quad e = i_{bk}

    Args:
        x_BCHW: Images.
        indices_BK: Chosen experts; -1 means nobody and adds nothing.
        weights_BK: Combine weights.
        w_EOIkk: Kernels, each laid out as ``nn.Conv2d.weight``.
        b_EO: Biases.
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``.
        dilation: As in ``nn.Conv2d``.
        groups: As in ``nn.Conv2d``.
        strategy: ``"loop"`` (images sorted by expert, one convolution per expert present; the
            default), ``"gathered"`` (every image's own kernel in one grouped convolution; the
            default when a graph is captured) or ``"reference"``.

    Shape:
        - ``[B, C, H, W] -> [B, O, H', W']``

    Raises:
        ArgumentError: Shapes disagree, or a graph is captured and the strategy reads group sizes.

    Example:
        >>> x, w = torch.ones(2, 1, 2, 2), torch.tensor([1.0, 5.0]).view(2, 1, 1, 1, 1)
        >>> routed_conv2d(x, torch.tensor([[0], [1]]), torch.ones(2, 1), w).sum((1, 2, 3)).tolist()
        [4.0, 20.0]
    """
    if strategy is not None and strategy not in CONV_STRATEGIES:
        raise UnknownNameError("convolution strategy", strategy, CONV_STRATEGIES)
    if strategy in ("loop", "reference") and is_traced():
        raise ArgumentError(
            f"strategy={strategy!r} reads group sizes on the host, which a captured graph cannot. "
            "Use 'gathered' or leave strategy=None."
        )
    _check(x_BCHW, indices_BK, weights_BK, w_EOIkk, groups)
    dtype = compute_dtype(x_BCHW)
    x, w = x_BCHW.to(dtype), w_EOIkk.to(dtype)
    b = None if b_EO is None else b_EO.to(dtype)
    shape = (stride, padding, dilation, groups)
    strategy = strategy or ("gathered" if is_traced() else "loop")
    if strategy == "gathered":
        return _gathered(x, indices_BK, weights_BK, w, b, *shape)
    biases = [None] * len(w) if b is None else b.unbind(0)
    functions = [
        lambda rows, w=we, b=be: F.conv2d(rows, w, b, *shape)
        for we, be in zip(w.unbind(0), biases, strict=True)
    ]
    routed = loop.routed if strategy == "loop" else reference.routed
    return routed(x, indices_BK, weights_BK, functions)


def _gathered(
    x: Tensor,
    indices_BK: Tensor,
    weights_BK: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> Tensor:
    """A convolution is linear, so the chosen kernels are mixed first: one convolution for any K."""
    B, K = indices_BK.shape
    E, out = w.shape[:2]
    chosen = indices_BK.clamp(min=0).flatten()
    weights = torch.where(indices_BK < 0, 0, weights_BK).to(w.dtype).unsqueeze(1)
    kernels = torch.bmm(weights, w.reshape(E, -1).index_select(0, chosen).view(B, K, -1))
    bias = None
    if b is not None:
        bias = torch.bmm(weights, b.index_select(0, chosen).view(B, K, out)).view(B * out)
    y = F.conv2d(
        x.reshape(1, B * x.shape[1], *x.shape[2:]),
        kernels.view(B * out, *w.shape[2:]),
        bias,
        stride,
        padding,
        dilation,
        B * groups,
    )
    return y.view(B, out, *y.shape[2:])


def _check(x: Tensor, indices: Tensor, weights: Tensor, w: Tensor, groups: int) -> None:
    fits = x.dim() == 4 and indices.dim() == 2 and indices.shape == weights.shape
    fits = fits and indices.shape[0] == x.shape[0] and w.dim() == 5
    if not fits or w.shape[2] * groups != x.shape[1]:
        raise ArgumentError(
            f"Got images {list(x.shape)}, indices {list(indices.shape)}, weights "
            f"{list(weights.shape)} and kernels {list(w.shape)} with groups={groups}; expected "
            "[B, C, H, W], [B, K], [B, K] and [E, O, C / groups, k, k]. One expert per image: the "
            "gate must decide per image."
        )
