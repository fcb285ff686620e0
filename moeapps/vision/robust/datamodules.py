"""Images with plain pixels from 0 to 1 for Lightning: balanced digits, or a named set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.vision import datasets
from moeapps.vision.datasets.images import ImageSet


class PixelBatches:
    """Batches of images in memory, in a new order each time if shuffled.

    Args:
        images: ``[N, C, H, W]``, 0 to 1.
        labels: ``[N]``.
        batch_size: Images of a batch.
        shuffle: Another order each time, and no last batch of a single image.
        pad: Random crops of images padded by this many pixels.
        flip: Random mirror images.
        seed: Of the order and the crops.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        pad: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.pad, self.flip = shuffle, pad, flip
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._sizes())

    def _sizes(self) -> list[int]:
        whole, rest = divmod(len(self.images), self.batch_size)
        single = self.shuffle and whole > 0 and rest == 1  # batch norm needs two
        return [self.batch_size] * whole + ([rest] if rest and not single else [])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.arange(len(self.images))
        if self.shuffle:
            order = torch.randperm(len(self.images), generator=self.generator)
        start = 0
        for size in self._sizes():
            rows = order[start : start + size]
            start += size
            images = self._augmented(self.images[rows])
            yield {"image": images, "label": self.labels[rows], "index": rows}

    def _augmented(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        if self.flip:
            mirrored = torch.rand(batch, generator=self.generator) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        if self.pad:
            padded = torch.nn.functional.pad(images, (self.pad,) * 4)
            offsets = torch.randint(2 * self.pad + 1, (2, batch), generator=self.generator)
            rows = offsets[0].view(-1, 1) + torch.arange(height)
            columns = offsets[1].view(-1, 1) + torch.arange(width)
            first = torch.arange(batch).view(-1, 1, 1)
            images = padded.permute(0, 2, 3, 1)[first, rows.unsqueeze(2), columns.unsqueeze(1)]
            images = images.permute(0, 3, 1, 2).contiguous()
        return images


class PixelData(lightning.LightningDataModule):
    """Images with pixels from 0 to 1, as attacks expect them, with validation and test parts.

    Args:
        dataset: ``"digits"`` (scikit-learn's, balanced: 1,200 for training of 1,797), or a name
            of :func:`moeapps.vision.datasets.list_datasets` whose images are in memory.
        root: Data home.
        dataset_args: Arguments of the set, such as ``{imbalance: null}`` for all of CIFAR-10.
        val_share: Share of the training images held out for validation; 0 validates nothing.
        batch_size: Images of a batch.
        pad: Random crops of images padded by this many pixels.
        flip: Random mirror images.
        seed: Of the split, the order and the crops.

    Attributes:
        num_classes: After ``setup``.
        in_channels: After ``setup``.
        image_size: Height and width; after ``setup``.

    Example:
        >>> data = PixelData("digits", batch_size=64)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, float(batch["image"].max())
        (torch.Size([64, 1, 8, 8]), 1.0)
    """

    def __init__(
        self,
        dataset: str = "digits",
        *,
        root: str | Path | None = None,
        dataset_args: dict[str, Any] | None = None,
        val_share: float = 0.0,
        batch_size: int = 128,
        pad: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 2:
            raise ArgumentError(f"batch_size={batch_size} is too small for batch norm. Choose 2+.")
        self.dataset, self.root, self.dataset_args = dataset, root, dict(dataset_args or {})
        self.val_share, self.batch_size = val_share, batch_size
        self.pad, self.flip, self.seed = pad, flip, seed
        self._splits: dict[str, ImageSet] = {}
        self._training: PixelBatches | None = None
        self._reached: Tensor | None = None  # by the draws of the run that is resumed

    def setup(self, stage: str) -> None:
        """Read the images once."""
        if self._splits:
            return
        if self.dataset == "digits":
            train, test = balanced_digits(self.seed)
            val = None
        else:
            found = datasets.load(self.dataset, root=self.root, **self.dataset_args)
            train, val, test = found.train, found.val, found.test
        if val is None and self.val_share:
            train, val = train.hold_out(self.val_share, self.seed)
        self._splits = {"train": train, "test": test}
        if val is not None:
            self._splits["val"] = val
        self.num_classes = train.num_classes
        *self.image_size, self.in_channels = train.shape

    def tensors(self, split: str) -> tuple[Tensor, Tensor]:
        """Images and labels of a split."""
        part = self._splits[split]
        return part.tensor(), torch.from_numpy(part.labels)

    def train_dataloader(self) -> PixelBatches:
        """Shuffled, augmented batches."""
        batches = PixelBatches(
            *self.tensors("train"), self.batch_size, shuffle=True, pad=self.pad, flip=self.flip,
            seed=self.seed,
        )  # fmt: skip
        if self._reached is not None:
            batches.generator.set_state(self._reached)
        self._training = batches
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Where the draws of order and crops have got to, in checkpoints."""
        return {} if self._training is None else {"draws": self._training.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on drawing where the run stood that wrote the checkpoint."""
        self._reached = state_dict["draws"]

    def val_dataloader(self) -> PixelBatches | list[Any]:
        """Validation batches, if there is such a part."""
        return PixelBatches(*self.tensors("val"), 256) if "val" in self._splits else []

    def test_dataloader(self) -> PixelBatches:
        """Test batches."""
        return PixelBatches(*self.tensors("test"), 256)


def balanced_digits(seed: int = 0, train: int = 1200) -> tuple[ImageSet, ImageSet]:
    """Scikit-learn's digits in two parts, shuffled: 1,200 and 597 images."""
    from moeapps.vision.datasets.digits import all_digits

    images, labels = all_digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    whole = ImageSet(images, labels, tuple(map(str, range(10))))
    return whole.take(order[:train]), whole.take(order[train:])
