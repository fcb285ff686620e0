"""Routed experts on rows that chose them: plan, run one strategy, combine."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.kernels import dense, grouped, loop, padded, reference
from moeapps.kernels.networks import Activation, Networks, compute_dtype
from moeapps.kernels.plan import combine_rows, gather, make_plan
from moeapps.kernels.select import choose, is_traced


def routed_mlp(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    w1_EFD: Tensor,
    b1_EF: Tensor | None,
    w2_EOF: Tensor,
    b2_EO: Tensor | None,
    *,
    act: Activation = F.gelu,
    gated: bool = False,
    dropout: float = 0.0,
    strategy: str | None = None,
    capacity: int | None = None,
) -> Tensor:
    r"""Weighted sum of each row's chosen two-layer experts.

    .. math:: y_n = \sum_k w_{nk}\,\big(W^2_e\,\mathrm{act}(W^1_e x_n + b^1_e) + b^2_e\big),
        \quad e = i_{nk}

    Args:
        x_ND: Rows.
        indices_NK: Chosen experts; -1 means nobody and adds nothing.
        weights_NK: Combine weights, cast once to the dtype of the products.
        w1_EFD: First layers, each laid out as ``nn.Linear.weight``.
        b1_EF: Their biases.
        w2_EOF: Second layers.
        b2_EO: Their biases.
        act: Activation between the layers.
        gated: ``w1`` is ``[E, 2F, D]`` and its second half multiplies the activated first half.
        dropout: Probability on the hidden layer; pass 0 outside training.
        strategy: One of ``kernels.STRATEGIES``; None leaves the choice to `select.choose`.
        capacity: Bound on the rows of one expert, used by ``"padded"``.

    Shape:
        - ``[N, D] -> [N, O]``, in the dtype of ``x`` (of autocast where it is on)

    Raises:
        ArgumentError: Shapes disagree, or the asked-for strategy cannot run on these inputs.

    Notes:
        All strategies compute the same function; ``"dense"`` multiplies unused experts by zero,
        so an expert with infinite weights is not isolated there.

    Example:
        >>> x, indices = torch.ones(2, 4), torch.tensor([[0], [1]])
        >>> w1, w2 = torch.ones(2, 8, 4), torch.ones(2, 3, 8)
        >>> y = routed_mlp(x, indices, torch.ones(2, 1), w1, None, w2, None, act=torch.relu)
        >>> y.tolist()
        [[32.0, 32.0, 32.0], [32.0, 32.0, 32.0]]
    """
    nets = Networks(w1_EFD, b1_EF, w2_EOF, b2_EO, act, gated, dropout)
    return routed(x_ND, indices_NK, weights_NK, nets, strategy=strategy, capacity=capacity)


def routed_linear(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    w_EOD: Tensor,
    b_EO: Tensor | None = None,
    *,
    strategy: str | None = None,
    capacity: int | None = None,
) -> Tensor:
    r"""Weighted sum of each row's chosen linear experts, :math:`\sum_k w_{nk}(W_e x_n + b_e)`.

    Arguments as in `routed_mlp`.

    Example:
        >>> x, indices = torch.ones(2, 4), torch.tensor([[0], [-1]])
        >>> routed_linear(x, indices, torch.ones(2, 1), torch.ones(3, 2, 4)).tolist()
        [[4.0, 4.0], [0.0, 0.0]]
    """
    nets = Networks(w_EOD, b_EO)
    return routed(x_ND, indices_NK, weights_NK, nets, strategy=strategy, capacity=capacity)


def routed(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    nets: Networks,
    *,
    strategy: str | None = None,
    capacity: int | None = None,
) -> Tensor:
    """Weighted sum of each row's chosen ``nets``; see `routed_mlp`."""
    if x_ND.dim() != 2 or indices_NK.shape != weights_NK.shape or indices_NK.dim() != 2:
        raise ArgumentError(
            f"Got rows {list(x_ND.shape)}, indices {list(indices_NK.shape)} and weights "
            f"{list(weights_NK.shape)}; expected [N, D], [N, K] and [N, K]. Flatten leading axes, "
            "or use gating.MoE, which does it."
        )
    nets.check(x_ND.shape[1])
    dtype = compute_dtype(x_ND)
    choice = choose(
        nets,
        dtype=dtype,
        device=x_ND.device,
        top_k=indices_NK.shape[1],
        strategy=strategy,
        capacity=capacity,
    )
    x_ND, nets = x_ND.to(dtype), nets.to(dtype)
    if choice.strategy == "reference":
        return reference.routed(x_ND, indices_NK, weights_NK, nets.functions())
    if choice.strategy == "dense":
        weights_NE = dense.to_dense(indices_NK, weights_NK, nets.num_experts)
        return dense.folded(x_ND, weights_NE, nets)
    plan = make_plan(indices_NK, nets.num_experts)
    rows = gather(x_ND, plan)
    y = _sorted_rows(rows, plan.offsets, nets, choice.strategy, capacity, x_ND.shape[0])
    return combine_rows(y, plan, weights_NK)


def sorted_rows(
    rows_RD: Tensor, offsets_E: Tensor, nets: Networks, *, strategy: str | None = None
) -> Tensor:
    """Apply expert ``e`` to ``rows[offsets[e-1]:offsets[e]]``, without weights, ``[R, O]``.

    Args:
        rows_RD: Rows sorted by expert.
        offsets_E: End of each expert's rows, int32; later rows give zero.
        nets: The experts.
        strategy: ``"loop"``, ``"grouped"`` or ``"padded"``; None follows `select.choose`, with
            ``"loop"`` where that names a strategy that does not work on sorted rows.
    """
    dtype = compute_dtype(rows_RD)
    choice = choose(nets, dtype=dtype, device=rows_RD.device, top_k=0, strategy=strategy).strategy
    if choice in ("dense", "reference"):
        if strategy is not None:
            raise ArgumentError(
                f"Strategy {strategy!r} does not work on rows sorted by expert. "
                "Choose 'loop', 'grouped' or 'padded'."
            )
        choice = "loop" if not is_traced() else "padded"
    rows_RD, nets = rows_RD.to(dtype), nets.to(dtype)
    return _sorted_rows(rows_RD, offsets_E, nets, choice, None, rows_RD.shape[0])


def _sorted_rows(
    rows: Tensor, offsets: Tensor, nets: Networks, strategy: str, capacity: int | None, most: int
) -> Tensor:
    if strategy == "loop":
        return loop.sorted_rows(rows, offsets, nets.functions())
    position = torch.arange(rows.shape[0], device=rows.device, dtype=offsets.dtype)
    experts = torch.searchsorted(offsets, position, right=True)
    if strategy == "grouped":
        return grouped.sorted_rows(rows, experts, offsets, nets)
    if capacity is not None:
        padded.check_capacity(offsets, capacity)
    else:
        # No expert can have more rows than there are; tighter where the host may look.
        capacity = max(1, most if is_traced() else int(padded.largest_group(offsets)))
    return padded.sorted_rows(rows, experts, offsets, nets, capacity)
