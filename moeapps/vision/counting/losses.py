r"""Losses of density maps at full resolution, computed at the stride of the maps.

A map of stride f is constant in cells of f x f pixels, so its squared error at full resolution
needs no repeated map:

.. math:: \sum_{p \in c} (d_c - t_p)^2 = n_c (d_c - \bar t_c)^2 + \sum_{p \in c} (t_p - \bar t_c)^2

The last term has no gradient. Targets :math:`t = sG` are densities times the label scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.vision.counting.density_maps import sum_pool

_NEVER = 1e-30  # probability whose logarithm still has a finite gradient


@dataclass(frozen=True)
class Cells:
    """What the losses read of a target, per cell of the maps, each ``[B, 1, h, w]``.

    Args:
        pixels: How many pixels of the image, or of its region of interest, lie in the cell.
        mean: Of the target over these pixels.
        spread: Sum of their squared differences from the mean.
        stride: Side of a cell in pixels.
    """

    pixels: Tensor
    mean: Tensor
    spread: Tensor
    stride: int

    @classmethod
    def of(cls, target: Tensor, stride: int, mask: Tensor | None = None) -> "Cells":
        """Cells of a target ``[B, 1, H, W]``; pixels where ``mask`` is 0 take no part.

        Example:
            >>> cells = Cells.of(torch.tensor([[[[1.0, 3.0, 5.0]]]]), stride=2)
            >>> cells.pixels.tolist(), cells.mean.tolist(), cells.spread.tolist()
            ([[[[2.0, 1.0]]]], [[[[2.0, 5.0]]]], [[[[2.0, 0.0]]]])
        """
        if target.dim() != 4 or target.shape[1] != 1:
            raise ArgumentError(
                f"a target of shape {list(target.shape)} would be broadcast; expected "
                "[B, 1, H, W]. Keep the axis of the channel."
            )
        target = target.to(torch.promote_types(target.dtype, torch.float32))
        inside = torch.ones_like(target) if mask is None else (mask > 0).to(target.dtype)
        pixels = sum_pool(inside, stride)
        mean = sum_pool(target * inside, stride) / pixels.clamp_min(1)
        height, width = target.shape[-2:]
        repeated = F.interpolate(mean, scale_factor=stride, mode="nearest")[..., :height, :width]
        spread = sum_pool((target - repeated).square() * inside, stride)
        return cls(pixels, mean, spread, stride)


def squared_error(maps: Tensor, cells: Cells) -> Tensor:
    """Squared error of every map at full resolution, ``[B, J, h, w] -> [B, J]``, exactly.

    Example:
        >>> cells = Cells.of(torch.tensor([[[[1.0, 3.0, 5.0]]]]), stride=2)
        >>> squared_error(torch.tensor([[[[1.0, 2.0]]]]), cells)  # 0 + 4 + 9
        tensor([[13.]])
    """
    return _cell_errors(maps, cells).sum((2, 3))


def relative_counting(
    maps: Tensor, cells: Cells, *, window: int = 16, hard: int = 9, triplets: int = 3
) -> Tensor:
    r"""How far the order of the hardest windows' counts is from the true order.

    The image falls into windows, the ``hard`` ones of largest squared error are sorted by their
    true count, most first, and with ``m = hard / 3`` each of the triplets
    :math:`(P_s, P_{s+m}, P_{s+2m})` of predicted counts adds

    .. math:: [P_{s+m} - P_s]_+ + [P_{s+2m} - P_s]_+ + [P_{s+2m} - P_{s+m}]_+

    Args:
        maps: ``[B, J, h, w]``.
        cells: Of the target.
        window: Side in pixels, a multiple of the stride; windows that the image cuts do not count.
        hard: How many windows, a multiple of 3; fewer where there are fewer windows.
        triplets: The first s of them, at most ``hard / 3``.

    Returns:
        ``[B, J]``; 0 for images of fewer than three windows.

    Raises:
        ArgumentError: A window or number of hard windows that cannot be.

    Notes:
        Departures from the released function: it adds the hard windows' squared error, without a
        gradient.

    Example:
        >>> cells = Cells.of(torch.tensor([[[[3.0, 2.0, 1.0]]]]), stride=1)
        >>> wrong = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> relative_counting(wrong, cells, window=1, hard=3)  # 1 + 2 + 1
        tensor([[4.]])
    """
    if window < 1 or window % cells.stride:
        raise ArgumentError(
            f"window={window} is no multiple of the stride {cells.stride}. Choose one that is."
        )
    if hard < 3 or hard % 3:
        raise ArgumentError(f"hard={hard} windows are not triplets. Choose a multiple of 3.")
    side = window // cells.stride
    rows, columns = (size // side for size in cells.mean.shape[-2:])
    hard = min(hard, rows * columns // 3 * 3)
    if hard == 0:
        return maps.sum((2, 3)) * 0

    def per_window(x: Tensor) -> Tensor:
        return (F.avg_pool2d(x, side) * side**2).flatten(2)

    with torch.no_grad():
        chosen = per_window(_cell_errors(maps, cells)).topk(hard, -1).indices
        true = per_window(cells.mean * cells.pixels).expand(-1, maps.shape[1], -1)
        true = true.gather(-1, chosen)
        chosen = chosen.gather(-1, true.argsort(dim=-1, descending=True, stable=True))
    counts = per_window(maps * cells.pixels).gather(-1, chosen)
    first, second, third = counts.unflatten(-1, (3, hard // 3))[..., :triplets].unbind(-2)
    wrong = (second - first).relu() + (third - first).relu() + (third - second).relu()
    return wrong.sum(-1)


def attention_loss(
    attention: Tensor, occupied: Tensor, stride: int, mask: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of the repeated attention, summed over each image's pixels, ``[B]``.

    Args:
        attention: Probabilities ``[B, 1, h, w]``.
        occupied: 1 where anything is, ``[B, 1, H, W]``.
        stride: From one to the other.
        mask: Region of interest ``[B, 1, H, W]``; other pixels do not count.

    Example:
        >>> loss = attention_loss(torch.tensor([[[[0.5]]]]), torch.tensor([[[[1.0, 0.0]]]]), 2)
        >>> round(float(loss), 4)  # twice log 2: the cell has two pixels inside
        1.3863
    """
    occupied = occupied.to(attention.dtype)
    rows, columns = -(-occupied.shape[-2] // stride), -(-occupied.shape[-1] // stride)
    attention = attention[..., :rows, :columns]  # cells of padding alone
    inside = torch.ones_like(occupied) if mask is None else (mask > 0).to(occupied.dtype)
    yes, pixels = sum_pool(occupied * inside, stride), sum_pool(inside, stride)
    log_yes = attention.clamp_min(_NEVER).log()
    log_no = (1 - attention).clamp_min(_NEVER).log()
    return -(yes * log_yes + (pixels - yes) * log_no).sum((1, 2, 3))


def counting_terms(
    aux: dict[str, Any],
    density: Tensor,
    *,
    label_scale: float,
    stride: int,
    gate_stride: int,
    level_weights: Sequence[float] = (1.0, 2.0, 4.0),
    mask: Tensor | None = None,
    occupied_above: float = 1e-5,
    window: int = 16,
    hard: int = 9,
) -> dict[str, Tensor]:
    r"""The terms of HMoDE's loss, as scalars without coefficients.

    .. math:: L_{levels} = \frac{1}{B} \sum_j a_j \|D_j - sG\|^2, \quad
        L_{relative} = \frac{1}{B} \sum_j a_j L_{rel}(D_j, sG), \quad
        L_{importance} / B, \quad L_{attention} / B

    over the experts, the groups and the output, with sums over all pixels.

    Args:
        aux: What the model gave.
        density: Target ``[B, 1, H, W]``, whose sum is the count.
        label_scale: ``model.label_scale``.
        stride: ``model.stride``.
        gate_stride: ``model.gate_stride``.
        level_weights: ``a`` of experts, groups and output; a level of weight 0 is left out.
        mask: Region of interest ``[B, 1, H, W]``; other pixels do not count.
        occupied_above: Density from which a pixel counts as occupied for the attention.
        window: See :func:`relative_counting`.
        hard: See :func:`relative_counting`.

    Returns:
        levels, relative, importance and attention; the last is 0 without one.

    Example:
        >>> one = torch.ones(1, 1, 2, 2)
        >>> aux = {"experts": 3 * one, "groups": one[:, :0], "output": 2 * one,
        ...        "attention": None, "importance": torch.tensor(0.5)}
        >>> terms = counting_terms(aux, one, label_scale=1, stride=1, gate_stride=1)
        >>> float(terms["levels"])  # 1 * 4 * (3 - 1)^2 + 4 * 4 * (2 - 1)^2
        32.0
    """
    names = ("experts", "groups", "output")
    kept = [(aux[name], a) for name, a in zip(names, level_weights, strict=True) if a]
    maps = torch.cat([m for m, _ in kept], 1)
    weights = torch.cat([maps.new_full((m.shape[1],), a) for m, a in kept])
    cells = Cells.of(label_scale * density, stride, mask)
    if maps.shape[-2:] != cells.mean.shape[-2:] or len(maps) != len(density):
        raise ArgumentError(
            f"maps {list(maps.shape)} do not fit a density {list(density.shape)} at stride "
            f"{stride}; expected [B, J, {cells.mean.shape[-2]}, {cells.mean.shape[-1]}]. Pass the "
            "density of the same images."
        )
    size = len(maps)
    attention = maps.new_zeros(())
    if aux["attention"] is not None:
        occupied = density > occupied_above
        attention = attention_loss(aux["attention"], occupied, gate_stride, mask).sum() / size
    relative = relative_counting(maps, cells, window=window, hard=hard)
    return {
        "levels": (squared_error(maps, cells) * weights).sum() / size,
        "relative": (relative * weights).sum() / size,
        "importance": aux["importance"] / size,
        "attention": attention,
    }


def _cell_errors(maps: Tensor, cells: Cells) -> Tensor:
    return cells.pixels * (maps - cells.mean).square() + cells.spread
