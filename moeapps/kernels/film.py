"""Mixtures of feature modulations, without evaluating every expert."""

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
        mixed = weights @ bias_EG
        scale, shift = mixed.view(*mixed.shape[:-1], *([1] * between), mixed.shape[-1]).chunk(
            2, dim=-1
        )
        return scale * x + shift
    assert maps_EGD is not None
    if form == "images":
        maps, bias = _mix_maps(weights, maps_EGD, bias_EG)
        rows = x.flatten(0, weights.dim() - 2).flatten(1, -2)
        both = torch.bmm(rows, maps.transpose(1, 2))
        if bias is not None:
            both = both + bias.unsqueeze(1)
        both = both.view(*x.shape[:-1], both.shape[-1])
    else:
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
    return scale * x + shift


def _mix_maps(
    weights: Tensor, maps_EGD: Tensor, bias_EG: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One map per image from the experts' maps."""
    E, G, D = maps_EGD.shape
    flat = weights.flatten(0, -2)
    maps = (flat @ maps_EGD.view(E, G * D)).view(flat.shape[0], G, D)
    return maps, None if bias_EG is None else flat @ bias_EG


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
