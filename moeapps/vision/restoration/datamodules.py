"""Pairs of photographs for Lightning: random crops to learn from, whole images to judge by."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision import datasets
from moeapps.vision.datasets.paired_images import PairedImages, PairedSplits

Sample = dict[str, Tensor]
Pixels = NDArray[np.uint8]
FOLDERS = ("paired-folder", "photo-folder")


class RestorationData(lightning.LightningDataModule):
    """Photographs in bad weather and without, as batches.

    A batch holds ``image`` and ``target`` (``[B, 3, H, W]``, 0 to 1), ``task`` (``[B]``, index into
    :attr:`tasks`) and ``index`` (``[B]``). Training takes random crops, turned and mirrored
    together; evaluation takes whole images, one per batch.

    Args:
        dataset: A set of restoration of :func:`moeapps.vision.datasets.list_datasets`;
            ``"paired-folder"`` for own pairs below ``root``, see
            :func:`moeapps.vision.datasets.read_paired_folder`; or ``"photo-folder"`` for own clean
            photographs under made weather, see
            :func:`moeapps.vision.datasets.read_photo_folder`.
        root: Data home, or the own folder.
        weather: Kinds of made weather, where the set is made; all if None.
        dataset_args: Further arguments of the set, such as ``{variants: 8}`` or ``{tests: [S]}``.
        val_share: Share of the training images held out where the set has no validation images;
            0 validates nothing.
        resize: Height and width that all images are brought to first, as the papers do; None keeps
            their sizes.
        crop: Side of the random training crops, or height and width.
        crops_per_image: Crops taken of each training pair in an epoch.
        batch_size: Crops of a training batch.
        dihedral: One of eight turns and mirror images at random.
        val_limit: Validate on this many images at most, spread over the set; None for all.
        num_workers: Processes that read images.
        seed: Of the split, the order and the crops.

    Attributes:
        tasks: Names of the tasks, after ``setup``.

    Raises:
        UnknownNameError: There is no such set.
        ArgumentError: A number cannot be, or the set holds no pairs.

    Example:
        >>> args = {"variants": 1, "short_side": 64}
        >>> data = RestorationData(weather=["haze", "snow"], dataset_args=args, crop=32)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["target"].shape, data.tasks
        (torch.Size([16, 3, 32, 32]), torch.Size([16, 3, 32, 32]), ('haze', 'snow'))
    """

    def __init__(
        self,
        dataset: str = "bundled-photos",
        *,
        root: str | Path | None = None,
        weather: list[str] | None = None,
        dataset_args: dict[str, Any] | None = None,
        val_share: float = 0.05,
        resize: list[int] | None = None,
        crop: int | list[int] = 64,
        crops_per_image: int = 1,
        batch_size: int = 16,
        dihedral: bool = True,
        val_limit: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        window = [crop] * 2 if isinstance(crop, int) else [*crop]
        sizes = [1, 1] if resize is None else [*resize]
        most = 1 if val_limit is None else val_limit
        if min(batch_size, crops_per_image, most, *window, *sizes) < 1 or not (
            len(window) == len(sizes) == 2 and 0 <= val_share < 1
        ):
            raise ArgumentError(
                f"batch_size={batch_size}, crops_per_image={crops_per_image}, crop={crop}, "
                f"resize={resize}, val_limit={val_limit}, val_share={val_share} cannot be. Choose "
                "whole numbers from 1, pairs of height and width, and a share below 1."
            )
        self.dataset, self.root, self.dataset_args = dataset, root, dict(dataset_args or {})
        if weather is not None:
            self.dataset_args["weather"] = weather
        self.val_share, self.resize, self.window = val_share, resize, window
        self.crops_per_image, self.batch_size, self.dihedral = crops_per_image, batch_size, dihedral
        self.val_limit, self.num_workers, self.seed = val_limit, num_workers, seed
        self.tasks: tuple[str, ...] = ()
        self._parts: dict[str, PairedImages] = {}
        self._draws: _Draws | None = None
        self._reached: Tensor | None = None  # by the draws of the run that is resumed

    @classmethod
    def from_splits(cls, splits: PairedSplits, name: str = "own images", **args: Any) -> Any:
        """The module of pairs that are already read.

        Args:
            splits: Training, test and perhaps validation pairs.
            name: For reports.
            **args: All but ``dataset``, ``root``, ``weather`` and ``dataset_args``.
        """
        data = cls(name, **args)
        data._take(splits)
        return data

    def setup(self, stage: str) -> None:
        """Find the pairs once; files are decoded when their batch is made."""
        if self._parts:
            return
        if self.dataset in FOLDERS:
            if self.root is None:
                raise ArgumentError(f"dataset={self.dataset!r} needs the folder. Pass root=.")
            read = datasets.read_paired_folder
            if self.dataset == "photo-folder":
                read = datasets.read_photo_folder
            self._take(read(self.root, **self.dataset_args))
            return
        found = datasets.load(self.dataset, root=self.root, **self.dataset_args)
        if not isinstance(found, PairedSplits):
            raise ArgumentError(
                f"{self.dataset} holds no pairs to restore. Choose a set of image restoration: "
                f"moeapps data list, or dataset={FOLDERS[0]!r} or {FOLDERS[1]!r}."
            )
        self._take(found)

    def _take(self, splits: PairedSplits) -> None:
        train, val = splits.train, splits.val
        if val is None and self.val_share:
            train, val = train.hold_out(self.val_share, self.seed)
        self.tasks = splits.task_names
        self._parts = {"train": train, "test": splits.test}
        if val is not None:
            if self.val_limit is not None and self.val_limit < len(val):
                # Spread by a permutation: equal strides could always meet the same weather.
                order = np.random.default_rng(self.seed).permutation(len(val))
                val = val.take(np.sort(order[: self.val_limit]))
            self._parts["val"] = val

    def part(self, split: str) -> PairedImages:
        """The pairs of a split."""
        if split not in self._parts:
            raise UnknownNameError("split", split, self._parts, "Call setup first.")
        return self._parts[split]

    def train_dataloader(self) -> "DataLoader[Sample]":
        """Shuffled batches of crops."""
        part = self.part("train")
        self._draws = _Draws(len(part), self.crops_per_image, self.seed)
        if self._reached is not None:
            self._draws.generator.set_state(self._reached)
        return DataLoader(
            _Pairs(self, part, crops=True), self.batch_size, sampler=self._draws,
            num_workers=self.num_workers, generator=torch.Generator().manual_seed(self.seed),
        )  # fmt: skip

    def val_dataloader(self) -> "DataLoader[Sample] | list[Any]":
        """Whole validation images, if there are any."""
        return self._whole("val") if "val" in self._parts else []

    def test_dataloader(self) -> "DataLoader[Sample]":
        """Whole test images."""
        return self._whole("test")

    def predict_dataloader(self) -> "DataLoader[Sample]":
        """Whole test images."""
        return self._whole("test")

    def _whole(self, split: str) -> "DataLoader[Sample]":
        return DataLoader(
            _Pairs(self, self.part(split), crops=False), 1, num_workers=self.num_workers,
            generator=torch.Generator(),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Where the draws of order and crops have got to, in checkpoints."""
        return {} if self._draws is None else {"draws": self._draws.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on drawing where the run stood that wrote the checkpoint."""
        self._reached = state_dict.get("draws")


class _Draws(Sampler[tuple[int, int]]):
    """Indices in a new order each time, each with a seed for the crop that is taken there."""

    def __init__(self, count: int, repeats: int, seed: int) -> None:
        self.count, self.repeats = count, repeats
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count * self.repeats

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(len(self), generator=self.generator) % self.count
        seeds = torch.randint(2**62, (len(self),), generator=self.generator)
        yield from zip(order.tolist(), seeds.tolist(), strict=True)


class _Pairs(Dataset[Sample]):
    """Crops of pairs by index and seed, or whole pairs by index."""

    def __init__(self, data: RestorationData, part: PairedImages, *, crops: bool) -> None:
        self.data, self.part, self.crops = data, part, crops

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, draw: Any) -> Sample:
        index, seed = draw if self.crops else (draw, 0)
        pair = self.part[index]
        if self.data.resize is not None:
            pair = tuple(_resized(image, self.data.resize) for image in pair)  # type: ignore[assignment]
        if self.crops:
            pair = random_crop(pair, self.data.window, np.random.default_rng(seed),
                               dihedral=self.data.dihedral)  # fmt: skip
        image, target = (
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255
            for pixels in pair
        )
        task = torch.tensor(int(self.part.tasks[index]))
        return {"image": image, "target": target, "task": task, "index": torch.tensor(index)}


def random_crop(
    pair: tuple[Pixels, Pixels],
    window: Sequence[int],
    rng: np.random.Generator,
    *,
    dihedral: bool = True,
) -> tuple[Pixels, Pixels]:
    """The same random crop of both images, turned and mirrored alike; small ones are mirrored out.

    Args:
        pair: ``[H, W, 3]`` each.
        window: Height and width.
        rng: Of place, turn and mirror.
        dihedral: One of eight turns and mirror images.

    Example:
        >>> both = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
        >>> image, target = random_crop((both, both), (4, 6), np.random.default_rng(0))
        >>> image.shape, bool((image == target).all())
        ((4, 6, 3), True)
    """
    turn = int(rng.integers(8)) if dihedral else 0
    height, width = window if turn % 2 == 0 else window[::-1]
    down, right = (max(0, a - b) for a, b in zip((height, width), pair[0].shape, strict=False))
    if down or right:
        edges = ((0, down), (0, right), (0, 0))
        pair = tuple(np.pad(image, edges, mode="symmetric") for image in pair)  # type: ignore[assignment]
    y = int(rng.integers(pair[0].shape[0] - height + 1))
    x = int(rng.integers(pair[0].shape[1] - width + 1))
    image, target = (
        np.rot90(part[y : y + height, x : x + width][:, :: -1 if turn >= 4 else 1], turn % 4)
        for part in pair
    )
    return image, target


def _resized(image: Pixels, size: Sequence[int]) -> Pixels:
    from PIL import Image

    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
