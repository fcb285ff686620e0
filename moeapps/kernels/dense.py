"""All experts on all rows: the dense layout, and the strategy for formats that cannot gather."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.kernels.networks import Networks, compute_dtype
from moeapps.kernels.select import is_traced

ALL_STRATEGIES = ("stacked", "loop", "wide")


def batched(x_ERD: Tensor, nets: Networks) -> Tensor:
    """Expert ``e`` on its own batch ``x[e]``, ``[E, R, D] -> [E, R, O]``.

    Batched products, but one expert after another on CPU from 128 rows each: the hidden layer then
    stays in the cache.
    """
    dtype = compute_dtype(x_ERD)
    x_ERD, nets = x_ERD.to(dtype), nets.to(dtype)
    if is_traced() or x_ERD.device.type != "cpu" or x_ERD.shape[1] < 128:
        return products(x_ERD, nets)
    return torch.stack([f(x) for f, x in zip(nets.functions(), x_ERD.unbind(0), strict=True)])


def products(x_ERD: Tensor, nets: Networks) -> Tensor:
    """The same by two batched products."""
    y = _bmm(x_ERD, nets.w1, nets.b1)
    return y if nets.w2 is None else _bmm(nets.activate(y), nets.w2, nets.b2)


def _bmm(x_ERD: Tensor, w_EOD: Tensor, b_EO: Tensor | None) -> Tensor:
    if b_EO is None:
        return torch.bmm(x_ERD, w_EOD.transpose(1, 2))
    return torch.baddbmm(b_EO.unsqueeze(1), x_ERD, w_EOD.transpose(1, 2))


def all_experts(x_ND: Tensor, nets: Networks, *, strategy: str | None = None) -> Tensor:
    """Every expert's output for every row, ``[N, D] -> [N, E, O]``.

    Args:
        x_ND: Rows.
        nets: The experts.
        strategy: ``"stacked"`` (batched products on an expanded view), ``"loop"`` (one expert after
            another) or ``"wide"`` (one product for all first layers). None takes ``"stacked"``,
            but ``"loop"`` for training on CPU with more than 512 rows.

    Example:
        >>> all_experts(torch.ones(2, 4), Networks(torch.ones(3, 5, 4))).shape
        torch.Size([2, 3, 5])
    """
    x_ND, nets = _prepare(x_ND, nets)
    E = nets.num_experts
    strategy = strategy or _choose_all(x_ND, nets)
    if strategy == "stacked":
        return products(x_ND.expand(E, *x_ND.shape), nets).transpose(0, 1)
    if strategy == "loop":
        return torch.stack([f(x_ND) for f in nets.functions()], dim=1)
    if strategy != "wide":
        raise UnknownNameError("dense-layout strategy", strategy, ALL_STRATEGIES)
    h_NEF = _first_layer(x_ND, nets)
    if nets.w2 is None:
        return h_NEF
    h_ENF = nets.activate(h_NEF).transpose(0, 1)
    return _bmm(h_ENF, nets.w2, nets.b2).transpose(0, 1)


def _choose_all(x_ND: Tensor, nets: Networks) -> str:
    # Traced first: the number of rows may be symbolic and must not be looked at.
    if is_traced() or x_ND.is_cuda:
        return "stacked"
    trains = torch.is_grad_enabled() and (x_ND.requires_grad or nets.w1.requires_grad)
    return "loop" if trains and x_ND.shape[0] > 512 else "stacked"


def folded(x_ND: Tensor, weights_NE: Tensor, nets: Networks) -> Tensor:
    r"""Weighted sum over all experts without the ``[N, E, O]`` tensor.

    The last layer is linear, so the weights go before it:

    .. math:: y = [g_1 h_1, \dots, g_E h_E]\,[W^2_1, \dots, W^2_E]^\top + \sum_e g_e b^2_e

    Args:
        x_ND: Rows.
        weights_NE: Mixing weights; 0 where an expert takes no part.
        nets: The experts.

    Shape:
        - ``[N, D] -> [N, O]``

    Example:
        >>> x, weights = torch.ones(1, 4), torch.tensor([[0.5, 0.0, 0.25]])
        >>> folded(x, weights, Networks(torch.ones(3, 2, 4))).tolist()
        [[3.0, 3.0]]
    """
    x_ND, nets = _prepare(x_ND, nets)
    w, b = nets.w1, nets.b1
    h_NED = x_ND.unsqueeze(1)
    if nets.w2 is not None:
        h_NED = nets.activate(_first_layer(x_ND, nets))
        w, b = nets.w2, nets.b2
    weights_NE = weights_NE.to(h_NED.dtype)
    mixed = (weights_NE.unsqueeze(2) * h_NED).flatten(1)
    y = F.linear(mixed, w.transpose(0, 1).flatten(1))
    return y if b is None else torch.addmm(y, weights_NE, b)


def _prepare(x_ND: Tensor, nets: Networks) -> tuple[Tensor, Networks]:
    if x_ND.dim() != 2:
        raise ArgumentError(
            f"Got rows {list(x_ND.shape)}, expected [N, D]. Flatten leading axes, or use "
            "gating.MoE, which does it."
        )
    nets.check(x_ND.shape[1])
    dtype = compute_dtype(x_ND)
    return x_ND.to(dtype), nets.to(dtype)


def _first_layer(x_ND: Tensor, nets: Networks) -> Tensor:
    E, F1, D = nets.w1.shape
    bias = None if nets.b1 is None else nets.b1.reshape(E * F1)
    h = F.linear(x_ND, nets.w1.reshape(E * F1, D), bias)
    return h.view(x_ND.shape[0], E, F1)


def to_dense(indices_NK: Tensor, weights_NK: Tensor, num_experts: int) -> Tensor:
    """Weights per expert ``[N, E]`` from chosen experts ``[N, K]``; index -1 adds nothing."""
    chosen = torch.where(indices_NK < 0, 0, weights_NK)
    out = weights_NK.new_zeros(indices_NK.shape[0], num_experts)
    return out.scatter_add(1, indices_NK.clamp(min=0), chosen)
