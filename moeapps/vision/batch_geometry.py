"""Crops, flips, rotations and holes for a batch of small images at once: no loop over images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(
    count: int, low: float, high: float, generator: torch.Generator | None = None
) -> Tensor:
    """``[count]`` numbers between two bounds, on the device of the generator."""
    device = generator.device if generator is not None else None
    return low + (high - low) * torch.rand(count, generator=generator, device=device)


def whole(count: int, low: int, high: int, generator: torch.Generator | None = None) -> Tensor:
    """``[count]`` whole numbers from ``low`` to ``high``, both included."""
    device = generator.device if generator is not None else None
    return torch.randint(low, high + 1, (count,), generator=generator, device=device)


def shift_and_warp(
    images: Tensor,
    *,
    shift: tuple[Tensor, Tensor] | None = None,
    flip: Tensor | None = None,
    matrix: Tensor | None = None,
    cropped: bool = False,
    mode: str = "nearest",
) -> Tensor:
    r"""Shift each image, mirror it, then apply a linear map about its centre, sampling once.

    The pixel at :math:`p` of the result (from the centre, in pixels) is that of the image at
    :math:`F\,M\,p + t`: :math:`M` the matrix, :math:`F` the mirror, :math:`t` the shift. Outside is
    0.

    Args:
        images: ``[B, C, H, W]``.
        shift: :math:`t` along x and along y, ``[B]`` each.
        flip: Which images to mirror left to right ``[B]`` bool.
        matrix: :math:`M`, ``[B, 2, 2]``.
        cropped: What the shift moved out of the frame stays outside, though the map would bring it
            back: as a crop does before a rotation.
        mode: ``"nearest"`` or ``"bilinear"``.

    Shape:
        ``[B, C, H, W]``.

    Example:
        >>> images = torch.arange(6.0).reshape(1, 1, 2, 3)
        >>> shift_and_warp(images, shift=(torch.tensor([1.0]), torch.tensor([0.0])))
        tensor([[[[1., 2., 0.],
                  [4., 5., 0.]]]])
    """
    count, _, height, width = images.shape
    if matrix is None:
        matrix = torch.eye(2).expand(count, 2, 2)
    affine = F.pad(matrix.to(images), (0, 1))
    if flip is not None:
        sign = 1.0 - 2.0 * flip.to(images)
        affine = torch.stack([affine[:, 0] * sign[:, None], affine[:, 1]], 1)
    # In the coordinates of grid_sample the image reaches from -1 to 1 along both axes.
    half = images.new_tensor([width / 2, height / 2, 1.0])
    grid = F.affine_grid(
        affine * half / half[:2, None], [count, 1, height, width], align_corners=False
    )
    if shift is not None:
        along = torch.stack([s.to(images) for s in shift], -1) / half[:2]
        outside = grid.abs() > 1
        grid = grid + along[:, None, None]
        if cropped:
            grid = grid.masked_fill(outside, 4.0)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def rotation(degrees: Tensor, scale: Tensor | None = None) -> Tensor:
    """Matrices ``[B, 2, 2]`` that turn images counterclockwise and enlarge them."""
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return matrix if scale is None else matrix / scale[:, None, None]


def cutout(
    images: Tensor,
    size: int,
    generator: torch.Generator | None = None,
    fill: Tensor | float = 0.0,
) -> Tensor:
    """Fill one square of each image; its centre may lie anywhere, so it may be cut off.

    Args:
        images: ``[B, C, H, W]``.
        size: Side of the square in pixels.
        generator: Of the places.
        fill: A number, or ``[C, 1, 1]``.

    Example:
        >>> holed = cutout(torch.ones(4, 1, 8, 8), 2, torch.Generator().manual_seed(0))
        >>> bool((holed.sum((1, 2, 3)) >= 60).all())
        True
    """
    count, _, height, width = images.shape
    inside = []
    for length in (height, width):
        centre = whole(count, 0, length - 1, generator).to(images.device)
        place = torch.arange(length, device=images.device) - centre[:, None] + size // 2
        inside.append((place >= 0) & (place < size))
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    filled = torch.as_tensor(fill, dtype=images.dtype, device=images.device)
    return torch.where(hole[:, None], filled, images)
