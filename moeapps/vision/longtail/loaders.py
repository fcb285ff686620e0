"""Batches of images in memory: rows and views are drawn for the whole batch at once."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.vision.transforms import Batched, Normalisation
from moeapps.vision.views import ImageViews

Batch = dict[str, Tensor]


class ImageBatches:
    """Batches ``{"image", "label", "index"}``, with a second view ``"strong"`` on request.

    Order and views follow seed and epoch alone, so a run that is resumed between two epochs goes on
    as if it had not stopped.

    Args:
        images: ``[N, C, H, W]``: uint8, or float32 from 0 to 1.
        labels: int64 ``[N]``.
        batch_size: Images per batch.
        weak: Transform of the batch for ``"image"``.
        strong: Transform of the batch for ``"strong"``; None for no such view.
        normalise: Mean and deviation of the pixels.
        shuffle: Another order each epoch.
        drop_last: Leave out the images that do not fill a batch.
        seed: Of order and views.

    Example:
        >>> from moeapps.vision.transforms import NORMALISATION, batched
        >>> batches = ImageBatches(
        ...     torch.rand(10, 1, 8, 8), torch.arange(10), 4, weak=batched("none"),
        ...     normalise=NORMALISATION["half"], shuffle=True,
        ... )
        >>> [len(batch["label"]) for batch in batches], next(iter(batches))["image"].shape
        ([4, 4, 2], torch.Size([4, 1, 8, 8]))
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        weak: Batched,
        strong: Batched | None = None,
        normalise: Normalisation,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        if not batch_size >= 1 or (drop_last and batch_size > len(labels)):
            raise ArgumentError(
                f"batch_size={batch_size} makes no whole batch of {len(labels)} images. Choose a "
                "smaller one."
            )
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.weak, self.strong, self.normalise = weak, strong, normalise
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for a ``sampler`` with :meth:`set_epoch`."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Order and views of the next iteration are those of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        count = len(self.labels)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for first in range(0, len(self) * self.batch_size, self.batch_size):
            yield self.batch(order[first : first + self.batch_size], generator)

    def batch(self, rows: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The batch of some rows."""
        images = self.images[rows]
        if images.dtype == torch.uint8:
            images = images.float() / 255
        found = {"image": self.normalise(self.weak(images, generator))}
        if self.strong is not None:
            found["strong"] = self.normalise(self.strong(images, generator))
        return {**found, "label": self.labels[rows], "index": rows}


class EpochOrder(torch.utils.data.Sampler[int]):
    """Order of single images, and the epoch of their views: both follow seed and epoch alone.

    Args:
        images: Whose epoch is set.
        shuffle: Another order each epoch.
        seed: Of the order.
    """

    def __init__(self, images: ImageViews, *, shuffle: bool = False, seed: int = 0) -> None:
        self.images, self.shuffle, self.seed = images, shuffle, seed

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before each epoch."""
        self.images.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(len(self.images)))
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.images.epoch)
        return iter(torch.randperm(len(self.images), generator=generator).tolist())
