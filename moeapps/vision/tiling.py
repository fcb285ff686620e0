"""Images of any size through a network, part by part: restored images blend, counts do not."""

from collections.abc import Iterator
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
        multiple: Positions of tiles are multiples of it. Nothing is padded here: the network takes
            any size and pads the border of a tile as it pads that of the whole image.
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
    if overlap is not None and isinstance(tile, int) and 0 < tile <= overlap:
        raise ArgumentError(
            f"halo={halo} on both sides leaves no core of tiles of {tile}. Choose tiles above "
            f"{overlap}, or a smaller halo."
        )
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
    padded = x if blend == "core" else _reflected(x, multiple)
    height, width = x.shape[-2:]

    def run(side: int, tile_batch: int) -> Tensor:
        most = max(side // 2 // (2 * multiple) * 2 * multiple, 0)
        shared = most if overlap is None or overlap >= side else overlap
        lines = [Lines(length, side, shared, multiple, blend) for length in padded.shape[-2:]]
        return _passes(model, padded, lines[0], lines[1], tile_batch, device)

    return shrinking(run, side, tile_batch, multiple=multiple)[..., :height, :width]


def _passes(
    model: Network,
    x: Tensor,
    down: "Lines",
    across: "Lines",
    tile_batch: int,
    device: torch.device,
) -> Tensor:
    """All tiles, a row of them at a time; a line of pixels is done when no later row reaches it."""
    output = rest = None
    for row, (top, height) in enumerate(down.spans):
        strip = x[:, :, top : top + height]
        parts = (strip[..., left : left + width] for left, width in across.spans)
        summed: Tensor | None = None
        for column, part in enumerate(_ask(model, parts, tile_batch, device)):
            left, width = across.spans[column]
            if part.shape[-2:] != (height, width):
                raise ArgumentError(
                    f"The network made {list(part.shape)} of a tile of {height} x {width}. "
                    "Expected the same height and width."
                )
            if summed is None:
                summed = part.new_zeros(
                    *part.shape[:2], height, x.shape[-1], dtype=torch.float64, device=x.device
                )
            weights = across.weights[column].to(x.device)
            summed[..., left : left + width] += part.to(summed) * weights
        assert summed is not None
        summed *= down.weights[row].to(x.device)[:, None]
        if output is None:
            output = x.new_empty(*summed.shape[:2], *x.shape[-2:])
        if rest is not None:  # what the row before left to this one
            summed[:, :, : rest.shape[2]] += rest
        done = down.spans[row + 1][0] - top if row + 1 < len(down.spans) else height
        output[:, :, top : top + done] = summed[:, :, :done].to(output.dtype)
        rest = summed[:, :, done:]
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
        if waiting and part.shape != waiting[0].shape:
            yield from flush()
        waiting.append(part)
        if len(waiting) == tile_batch:
            yield from flush()
    yield from flush()


class Lines:
    """How tiles divide a side: first pixel and length of each, and the weight of each pixel.

    Args:
        side: Pixels of the image.
        tile: Of a tile.
        shared: Of two neighbours.
        multiple: First pixels are multiples of it, also where the last tile gets shorter by it.
        blend: ``"uniform"``, ``"hann"``, or ``"core"``: each pixel from one tile alone.

    Attributes:
        spans: First pixel and length of each tile.
        weights: Float64, for each tile; they sum to 1 at every pixel.

    Example:
        >>> Lines(720, 240, 120, 8, "uniform").spans
        [(0, 240), (120, 240), (240, 240), (360, 240), (480, 240)]
        >>> Lines(10, 6, 2, 4, "core").spans, Lines(10, 6, 2, 4, "core").weights[1].tolist()
        ([(0, 6), (4, 6)], [0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """

    def __init__(self, side: int, tile: int, shared: int, multiple: int, blend: str) -> None:
        last = max(-(-(side - tile) // multiple) * multiple, 0)
        tops = [*range(0, last, tile - shared), last]
        self.spans = [(top, min(tile, side - top)) for top in tops]
        # Between two neighbours the border is in the middle of what they share.
        cuts = [(a + length + b) // 2 for (a, length), (b, _) in pairwise(self.spans)]
        windows = []
        for (top, length), begin, end in zip(self.spans, [0, *cuts], [*cuts, side], strict=True):
            at = torch.arange(length, dtype=torch.float64)
            if blend == "core":
                windows.append(((at + top >= begin) & (at + top < end)).double())
            elif blend == "hann":
                windows.append(torch.sin(torch.pi * (at + 0.5) / length) ** 2)
            else:
                windows.append(torch.ones_like(at))
        total = torch.zeros(side, dtype=torch.float64)
        for (top, length), window in zip(self.spans, windows, strict=True):
            total[top : top + length] += window
        self.weights = [
            window / total[top : top + length]
            for (top, length), window in zip(self.spans, windows, strict=True)
        ]


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
