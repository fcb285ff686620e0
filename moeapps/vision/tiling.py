"""Images of any size through a network, part by part: restored images blend, counts do not."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.tile_memory import Network, choose_tile, device_of, shrinking

BLENDS = ("uniform", "hann")
Tile = int | Literal["auto"] | None


@torch.no_grad()
def tiled_inference(
    model: Network,
    x: Tensor,
    tile: Tile = None,
    overlap: int | None = None,
    multiple: int = 1,
    *,
    blend: Literal["uniform", "hann"] = "uniform",
    tile_batch: int = 1,
) -> Tensor:
    r"""The network's output for images of any size, the weighted mean where its tiles overlap.

    .. math:: y(p) = \frac{\sum_t w_t(p) f(x_t)(p)}{\sum_t w_t(p)}

    with :math:`w_t = 1`, or with Hann windows, which fade a tile out towards its borders so that no
    seam is left. Tiles lie at a stride of ``tile - overlap``, the last ones at the border.

    Args:
        model: ``[B, C, h, w] -> [B, C', h, w]``. Put it into ``eval`` mode; it may be on another
            device than the images, which then go there tile by tile.
        x: Images ``[B, C, H, W]``.
        tile: Side of the tiles; None takes images whole, ``"auto"`` chooses by
            :func:`moeapps.vision.tile_memory.choose_tile`.
        overlap: Pixels that neighbours share; by default half a tile.
        multiple: Sides of what the network gets are multiples of it, by reflection of the image.
        blend: ``"uniform"`` or ``"hann"``.
        tile_batch: Tiles in one pass.

    Shape:
        - Output: ``[B, C', H, W]``, on the device of ``x``

    Raises:
        ArgumentError: A number cannot be, or the network changes the size.
        UnknownNameError: There is no such blend.
        ConfigError: Memory runs out even with the smallest tile.

    Notes:
        When memory runs out, first one tile at a time is tried, then tiles of half the side, and a
        warning says so. Sums are float64, so that the identity is exact.

    Example:
        >>> x = torch.rand(1, 3, 101, 77)
        >>> torch.equal(tiled_inference(lambda part: part, x, 48, 24, 16, blend="hann"), x)
        True
    """
    if blend not in BLENDS:
        raise UnknownNameError("blend", blend, BLENDS)
    return _tiled(model, x, tile, overlap, multiple, blend, tile_batch)


@torch.no_grad()
def tiled_density(
    model: Network,
    x: Tensor,
    tile: Tile = None,
    halo: int | None = None,
    multiple: int = 1,
    *,
    tile_batch: int = 1,
) -> Tensor:
    """The density for images of any size: every pixel from one tile, so that nothing counts twice.

    Tiles overlap by two halos and each gives its core, so that at least ``halo`` pixels of
    surroundings were seen on every side that is no border of the image. Where the halo is at least
    the reach of the network, the density is that of the whole image.

    Args:
        model: ``[B, C, h, w] -> [B, 1, h, w]``, in ``eval`` mode.
        x: Images ``[B, C, H, W]``.
        tile: Side of the tiles, halo included; None takes images whole, ``"auto"`` chooses by
            :func:`moeapps.vision.tile_memory.choose_tile`.
        halo: Pixels around each core, rounded up to the multiple; by default a quarter of a tile.
        multiple: Sides and positions of tiles are multiples of it.
        tile_batch: Tiles in one pass.

    Shape:
        - Output: ``[B, 1, H, W]``, on the device of ``x``

    Raises:
        ArgumentError: A number cannot be, or the network changes the size.
        ConfigError: Memory runs out even with the smallest tile.

    Notes:
        When memory runs out, first one tile at a time is tried, then tiles of half the side with at
        most a quarter of it as halo, and a warning says so.

    Example:
        >>> density = tiled_density(lambda part: part[:, :1], torch.ones(1, 3, 50, 70), 32, 8)
        >>> density.shape, float(density.sum())
        (torch.Size([1, 1, 50, 70]), 3500.0)
    """
    overlap = None if halo is None else 2 * (-(-halo // multiple) * multiple)
    return _tiled(model, x, tile, overlap, multiple, "core", tile_batch)


def _tiled(
    model: Network,
    x: Tensor,
    tile: Tile,
    overlap: int | None,
    multiple: int,
    blend: str,
    tile_batch: int,
) -> Tensor:
    _check(x, tile, overlap, multiple, tile_batch)
    device = device_of(model, x)
    if tile == "auto":
        tile = choose_tile(model, x, device=device, multiple=multiple)
    side = -(-max(x.shape[-2:]) // multiple) * multiple if tile is None else tile
    padded = _reflected(x, multiple)
    height, width = x.shape[-2:]

    def run(side: int, tile_batch: int) -> Tensor:
        most = max(side // 2 // (2 * multiple) * 2 * multiple, 0)
        shared = most if overlap is None or overlap >= side else overlap
        return _passes(model, padded, side, shared, blend, tile_batch, device)

    return shrinking(run, side, tile_batch, multiple=multiple)[..., :height, :width]


def _passes(
    model: Network,
    x: Tensor,
    tile: int,
    overlap: int,
    blend: str,
    tile_batch: int,
    device: torch.device,
) -> Tensor:
    """All tiles, a row of them at a time; a line of pixels is done when no later row reaches it."""
    height, width = (min(tile, side) for side in x.shape[-2:])
    tops, lefts = (starts(side, tile, tile - overlap) for side in x.shape[-2:])
    down, across = _weights(tops, height, blend), _weights(lefts, width, blend)
    output: Tensor | None = None
    for row, top in enumerate(tops):
        strip = x[:, :, top : top + height]
        parts = (strip[..., left : left + width] for left in lefts)
        summed: Tensor | None = None
        for column, part in enumerate(_ask(model, parts, tile_batch, device)):
            if part.shape[-2:] != (height, width):
                raise ArgumentError(
                    f"The network made {list(part.shape)} of a tile of {height} x {width}. "
                    "Expected the same height and width."
                )
            if summed is None:
                summed = part.new_zeros(
                    *part.shape[:2], height, x.shape[-1], dtype=torch.float64, device=x.device
                )
            left = lefts[column]
            summed[..., left : left + width] += part.to(summed) * across[column].to(x.device)
        assert summed is not None
        summed *= down[row].to(x.device)[:, None]
        if output is None:
            output = x.new_empty(*summed.shape[:2], *x.shape[-2:])
            band = torch.zeros_like(summed)
        band += summed
        done = tops[row + 1] - top if row + 1 < len(tops) else height
        output[:, :, top : top + done] = band[:, :, :done].to(output.dtype)
        band = torch.cat([band[:, :, done:], torch.zeros_like(band[:, :, :done])], dim=2)
    assert output is not None
    return output


def _ask(
    model: Network, parts: Iterator[Tensor], tile_batch: int, device: torch.device
) -> Iterator[Tensor]:
    """What the network makes of each part, some parts in each pass."""
    waiting: list[Tensor] = []

    def flush() -> Iterator[Tensor]:
        if waiting:
            made = model(torch.cat(waiting).to(device))
            yield from made.split(len(waiting[0]))
            waiting.clear()

    for part in parts:
        waiting.append(part)
        if len(waiting) == tile_batch:
            yield from flush()
    yield from flush()


def starts(side: int, tile: int, stride: int) -> list[int]:
    """First pixels of the tiles along a side; the last tile ends at the border.

    Example:
        >>> starts(720, 240, 120), starts(100, 48, 24), starts(30, 48, 24)
        ([0, 120, 240, 360, 480], [0, 24, 48, 52], [0])
    """
    last = max(side - tile, 0)
    return [*range(0, last, stride), last]


def _weights(starts: Sequence[int], tile: int, blend: str) -> list[Tensor]:
    """Weight of each pixel of each tile along a side, float64; at every pixel their sum is 1."""
    if blend == "core":
        # Between two neighbours the border is in the middle of what they share.
        cuts = [0, *((a + b + tile) // 2 for a, b in pairwise(starts))]
        ends = [*cuts[1:], starts[-1] + tile]
        at = torch.arange(tile)
        return [
            ((at + start >= cut) & (at + start < end)).double()
            for start, cut, end in zip(starts, cuts, ends, strict=True)
        ]
    window = torch.ones(tile, dtype=torch.float64)
    if blend == "hann":
        window = torch.sin(torch.pi * (torch.arange(tile, dtype=torch.float64) + 0.5) / tile) ** 2
    total = torch.zeros(starts[-1] + tile, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += window
    return [window / total[start : start + tile] for start in starts]


def _reflected(x: Tensor, multiple: int) -> Tensor:
    """Sides grown at the bottom and the right to a multiple, mirrored as often as needed."""
    for dim in (-2, -1):
        side = x.shape[dim]
        more = -side % multiple
        if more:
            period = max(2 * (side - 1), 1)
            at = torch.arange(side, side + more, device=x.device) % period
            x = torch.cat([x, x.index_select(dim, torch.minimum(at, period - at))], dim)
    return x


def _check(x: Tensor, tile: Tile, overlap: int | None, multiple: int, tile_batch: int) -> None:
    if x.dim() != 4 or 0 in x.shape or not x.is_floating_point():
        raise ArgumentError(
            f"Got {x.dtype} {list(x.shape)}, expected float images [B, C, H, W] that are not empty."
        )
    if multiple < 1 or tile_batch < 1:
        raise ArgumentError(f"multiple={multiple} and tile_batch={tile_batch} must be 1 or more.")
    if isinstance(tile, str) and tile != "auto":
        raise ArgumentError(f"tile={tile!r} is unknown. Choose a number, None or 'auto'.")
    if isinstance(tile, int) and (tile < 1 or tile % multiple):
        raise ArgumentError(
            f"tile={tile} must be above 0 and a multiple of {multiple}. Choose "
            f"{max(round(tile / multiple), 1) * multiple}."
        )
    if overlap is not None and (overlap < 0 or (isinstance(tile, int) and overlap >= tile)):
        raise ArgumentError(
            f"Neighbours cannot share {overlap} pixels of tiles of {tile}. Choose from 0 to below "
            "the tile."
        )
