"""Made-up writers: a fixed slant, size, turn and stroke width per user, applied to any digits."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.vision.batch_geometry import rotation, shift_and_warp


@dataclass(frozen=True)
class WriterStyle:
    r"""How one user writes.

    Args:
        slant: Shear, horizontal by vertical pixels.
        scale: Size of the strokes' figure; 1 keeps it.
        degrees: Turn.
        thickness: Above 0 strokes grow towards the brightest neighbour by this share, below 0 they
            shrink towards the darkest.

    Raises:
        ArgumentError: A scale that is not positive, or a thickness beyond -1..1.

    Example:
        >>> images = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(WriterStyle()(images), images, atol=1e-5)
        True
    """

    slant: float = 0.0
    scale: float = 1.0
    degrees: float = 0.0
    thickness: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.scale > 0 or not -1 <= self.thickness <= 1:
            raise ArgumentError(
                f"scale={self.scale}, thickness={self.thickness}: expected a scale above 0 and a "
                "thickness from -1 to 1."
            )

    @classmethod
    def draw(cls, seed: int, *, strength: float = 1.0) -> "WriterStyle":
        """A user by number; ``strength`` says how far from the plain style users may be."""
        rng = np.random.default_rng(seed)
        sign = 1.0 if rng.random() < 0.5 else -1.0
        return cls(
            slant=sign * strength * rng.uniform(0.3, 0.8),
            scale=math.exp(strength * rng.uniform(-0.35, 0.1)),
            degrees=sign * strength * rng.uniform(5, 25),
            thickness=float(np.clip(strength * rng.uniform(-0.7, 0.7), -1, 1)),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """The images ``[B, C, H, W]``, 0 to 1, as this user would have written them."""
        count = len(images)
        shear = torch.tensor([[1.0, self.slant], [0.0, 1.0]])
        turn = rotation(torch.tensor([self.degrees]), torch.tensor([self.scale]))[0]
        warped = shift_and_warp(images, matrix=(turn @ shear).expand(count, 2, 2), mode="bilinear")
        if self.thickness >= 0:
            other = F.max_pool2d(warped, 3, 1, 1)
        else:
            other = -F.max_pool2d(-warped, 3, 1, 1)
        return torch.lerp(warped, other, abs(self.thickness))
