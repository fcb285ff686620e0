"""Mixtures of feature modulations, without evaluating every expert."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError

FILM_FORMS = ("rows", "images", "static", "reference")


def film_mix(
    x: Tensor,
    weights: Tensor,
    maps_EGD: Tensor | None,
    bias_EG: Tensor | None = None,
    *,
    form: str | None = None,
) -> Tensor:
    r"""Weighted sum of feature modulations whose scale and shift may depend on the row.

    .. math:: y = \sum_e w_e\big[(A_e x + a_e) \odot x + (B_e x + b_e)\big]

    Args:
        x: Rows.
        weights: Mixing weights, one set per row, or one set for all rows of an image.
        maps_EGD: ``[A_e; B_e]`` stacked to ``[E, 2D, D]``; None if scale and shift are constants.
        bias_EG: ``[a_e; b_e]`` stacked to ``[E, 2D]``.
        form: How to compute it; None chooses. ``"rows"``: one product of all maps with the weighted
            rows ``[N, E D]``. ``"images"``: mix the maps first, so that the cost does not depend on
            ``E``; needs weights per image. ``"static"``: mix the constants. ``"reference"``: every
            expert in turn.

    Shape:
        - weights per row: ``x [*L, D]``, ``weights [*L, E]``
        - weights per image: ``x [*L, ..., D]``, ``weights [*L, E]``
        - output like ``x``

    Raises:
        ArgumentError: The shapes do not fit, or the form does not fit them.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> constants = torch.tensor([[2.0, 2.0, 1.0, 1.0]])  # scale 2, shift 1
        >>> film_mix(x, torch.ones(1, 1), None, constants).tolist()
        [[3.0, 5.0]]
    """
    per_image = x.dim() > weights.dim()
    form = _form(form, per_image, maps_EGD)
    _check(x, weights, maps_EGD, bias_EG)
    weights = weights.to(x.dtype)
    between = x.dim() - weights.dim()  # axes of an image that share one set of weights
    if form == "static":
        assert bias_EG is not None
        lift = (*weights.shape[:-1], *([1] * between), x.shape[-1])
        scale, shift = (weights @ half for half in bias_EG.chunk(2, dim=-1))
        return torch.addcmul(shift.view(lift), scale.view(lift), x)
    assert maps_EGD is not None
    if form == "images":
        return _by_image(x, weights, maps_EGD, bias_EG)
    lifted = weights.view(*weights.shape[:-1], *([1] * between), weights.shape[-1])
    lifted = lifted.expand(*x.shape[:-1], weights.shape[-1])
    if form == "reference":
        return _reference(x, lifted, maps_EGD, bias_EG)
    E, G, D = maps_EGD.shape
    weighted = (lifted.unsqueeze(-1) * x.unsqueeze(-2)).reshape(*x.shape[:-1], E * D)
    both = F.linear(weighted, maps_EGD.transpose(0, 1).reshape(G, E * D))
    if bias_EG is not None:
        both = both + lifted @ bias_EG
    scale, shift = both.chunk(2, dim=-1)
    return torch.addcmul(shift, scale, x)


def _by_image(x: Tensor, weights: Tensor, maps_EGD: Tensor, bias_EG: Tensor | None) -> Tensor:
    """Mix the maps of each image, then apply them to its rows."""
    G, D = maps_EGD.shape[1:]
    flat = weights.flatten(0, -2)
    rows = x.flatten(0, weights.dim() - 2).flatten(1, -2)
    maps = _mix_maps(flat, maps_EGD.view(-1, G * D)).view(flat.shape[0], 2, D, D).transpose(2, 3)
    # Scale and shift apart: backward then keeps the scales only.
    if bias_EG is None:
        scale, shift = torch.bmm(rows, maps[:, 0]), torch.bmm(rows, maps[:, 1])
    else:
        bias = (flat @ bias_EG).view(flat.shape[0], 2, 1, D)
        scale = torch.baddbmm(bias[:, 0], rows, maps[:, 0])
        shift = torch.baddbmm(bias[:, 1], rows, maps[:, 1])
    return torch.addcmul(shift, scale, rows).view(x.shape)


def _mix_maps(weights_BE: Tensor, maps_EM: Tensor) -> Tensor:
    """``weights @ maps``; on the CPU in pieces of the long axis, which stay in its cache."""
    if torch.is_grad_enabled() or maps_EM.is_cuda or weights_BE.shape[0] == 1:
        return weights_BE @ maps_EM
    pieces = math.gcd(maps_EM.shape[1], 64)
    cut = maps_EM.view(maps_EM.shape[0], pieces, -1).transpose(0, 1)
    return torch.bmm(weights_BE.expand(pieces, -1, -1), cut).transpose(0, 1).flatten(1)


def _reference(x: Tensor, weights: Tensor, maps_EGD: Tensor, bias_EG: Tensor | None) -> Tensor:
    y = torch.zeros_like(x)
    for e in range(maps_EGD.shape[0]):
        both = F.linear(x, maps_EGD[e], None if bias_EG is None else bias_EG[e])
        scale, shift = both.chunk(2, dim=-1)
        y = y + weights[..., e : e + 1] * (scale * x + shift)
    return y


def _form(form: str | None, per_image: bool, maps: Tensor | None) -> str:
    if maps is None:
        if form not in (None, "static"):
            raise ArgumentError(
                f"form={form!r} needs maps; constants alone are mixed by 'static'. Pass form=None."
            )
        return "static"
    if form is None:
        return "images" if per_image else "rows"
    if form not in FILM_FORMS or form == "static" or (form == "images" and not per_image):
        raise ArgumentError(
            f"form={form!r} does not fit: 'rows' and 'reference' always do, 'images' needs weights "
            "per image and 'static' needs maps=None. Pass form=None."
        )
    return form


def _check(x: Tensor, weights: Tensor, maps: Tensor | None, bias: Tensor | None) -> None:
    D, E = x.shape[-1], weights.shape[-1]
    wrong = x.shape[: weights.dim() - 1] != weights.shape[:-1] or (maps is None and bias is None)
    wrong = wrong or (maps is not None and tuple(maps.shape) != (E, 2 * D, D))
    if wrong or (bias is not None and tuple(bias.shape) != (E, 2 * D)):
        raise ArgumentError(
            f"Got x {list(x.shape)}, weights {list(weights.shape)}, maps "
            f"{None if maps is None else list(maps.shape)}, bias "
            f"{None if bias is None else list(bias.shape)}; expected x [*L, ..., D], weights "
            "[*L, E], maps [E, 2D, D], bias [E, 2D], and at least one of the last two."
        )
