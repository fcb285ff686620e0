"""Photographs with points for Lightning: random crops to learn from, whole images to judge by."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision import datasets
from moeapps.vision.counting import transforms
from moeapps.vision.counting.density_maps import density_map
from moeapps.vision.counting.transforms import Scene
from moeapps.vision.datasets.points import PointImages, PointSplits

MODES = ("fixed", "knn", "size")
Sample = dict[str, Tensor]


class CountingData(lightning.LightningDataModule):
    """Photographs with points as batches of images, density maps and counts.

    A batch holds ``image`` (``[B, 3, H, W]``, 0 to 1), ``density`` (``[B, 1, H, W]``, whose sum is
    the number of points), ``count`` (``[B]``), ``index`` and, for sets with a region that counts,
    ``mask`` (``[B, 1, H, W]``). Points outside the mask do not count. Evaluation takes whole
    images, one per batch, and adds ``dots``, the number of points in each pixel.

    Args:
        dataset: A set of counting of :func:`moeapps.vision.datasets.list_datasets`; or
            ``"folder"`` for own images below ``root``, see
            :func:`moeapps.vision.datasets.read_point_folder`.
        root: Data home, or the folder of own images.
        dataset_args: Arguments of the set, such as ``{fold: 2}``.
        val_share: Share of the training images held out where the set has no validation images;
            0 validates nothing.
        batch_size: Images of a training batch.
        crop: Side of the random training crops, or height and width; None takes whole images,
            which must be of one size for batches of more than one.
        crops_per_image: Crops taken of each training image in an epoch.
        flip: Random mirror images.
        max_side: Larger images are made smaller, in every split.
        multiple: Both sides of whole training images are brought down to a multiple.
        sigma: Of the density, in pixels.
        density: ``"fixed"``, ``"knn"`` (by the distance to the neighbours) or ``"size"`` (by the
            size of the heads, where the set has it).
        num_workers: Processes that read images.
        seed: Of the split, the order and the crops.

    Raises:
        UnknownNameError: There is no such set or density.
        ArgumentError: A number cannot be, the set has no points, or no sizes of heads.

    Example:
        >>> args = {"train": 4, "val": 1, "test": 2, "size": 64}
        >>> data = CountingData(dataset_args=args, batch_size=2, crop=32)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["density"].shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 1, 32, 32]))
        >>> bool(torch.allclose(batch["density"].sum((1, 2, 3)), batch["count"], atol=1e-4))
        True
    """

    def __init__(
        self,
        dataset: str = "rendered-crowds",
        *,
        root: str | Path | None = None,
        dataset_args: dict[str, Any] | None = None,
        val_share: float = 0.1,
        batch_size: int = 8,
        crop: int | list[int] | None = None,
        crops_per_image: int = 1,
        flip: bool = True,
        max_side: int | None = None,
        multiple: int = 1,
        sigma: float = 4.0,
        density: Literal["fixed", "knn", "size"] = "fixed",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        window = [crop] * 2 if isinstance(crop, int) else crop
        numbers = (
            batch_size,
            crops_per_image,
            multiple,
            1 if max_side is None else max_side,
            *(window or [1, 1]),
        )
        if min(numbers) < 1 or (window is not None and len(window) != 2):
            raise ArgumentError(
                f"batch_size={batch_size}, crop={crop}, crops_per_image={crops_per_image}, "
                f"max_side={max_side} and multiple={multiple} must be 1 or more."
            )
        if density not in MODES:
            raise UnknownNameError("density", density, MODES)
        if not sigma > 0 or not 0 <= val_share < 1:
            raise ArgumentError(
                f"sigma={sigma} and val_share={val_share} cannot be. Choose sigma above 0, and a "
                "share from 0 to below 1."
            )
        self.dataset, self.root, self.dataset_args = dataset, root, dict(dataset_args or {})
        self.val_share, self.batch_size, self.num_workers = val_share, batch_size, num_workers
        self.window, self.crops_per_image, self.flip = window, crops_per_image, flip
        self.max_side, self.multiple = max_side, multiple
        self.sigma, self.density, self.seed = sigma, density, seed
        self._parts: dict[str, PointImages] = {}
        self._draws: _Draws | None = None
        self._reached: Tensor | None = None  # by the draws of the run that is resumed

    @classmethod
    def from_splits(cls, splits: PointSplits, name: str = "own images", **args: Any) -> Any:
        """The module of images that are already read.

        Args:
            splits: Training, test and perhaps validation images.
            name: For reports.
            **args: All but ``dataset``, ``root`` and ``dataset_args``.
        """
        data = cls(name, **args)
        data._take(splits)
        return data

    def setup(self, stage: str) -> None:
        """Read the points once; images are decoded when their batch is made."""
        if self._parts:
            return
        if self.dataset == "folder":
            if self.root is None:
                raise ArgumentError("dataset='folder' needs the folder. Pass root=.")
            splits = datasets.read_point_folder(self.root, **self.dataset_args)
        else:
            splits = datasets.load(self.dataset, root=self.root, **self.dataset_args)
        if not isinstance(splits, PointSplits):
            raise ArgumentError(
                f"{self.dataset} has no points to count. Choose a set of counting: moeapps data "
                "list, or dataset='folder'."
            )
        self._take(splits)

    def _take(self, splits: PointSplits) -> None:
        train, val = splits.train, splits.val
        if val is None and self.val_share:
            train, val = train.hold_out(self.val_share, self.seed)
        if self.density == "size" and train.sizes is None:
            raise ArgumentError(
                f"{self.dataset} has no sizes of heads. Choose density='knn' or 'fixed'."
            )
        self._parts = {"train": train, "test": splits.test}
        if val is not None:
            self._parts["val"] = val

    def part(self, split: str) -> PointImages:
        """The images of a split, as they were read."""
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
            _Crops(self, part), batch_size=self.batch_size, sampler=self._draws, collate_fn=collate,
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
            _WholeImages(self, self.part(split)), batch_size=1, collate_fn=collate,
            num_workers=self.num_workers, generator=torch.Generator(),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Where the draws of order and crops have got to, in checkpoints."""
        return {} if self._draws is None else {"draws": self._draws.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on drawing where the run stood that wrote the checkpoint."""
        self._reached = state_dict.get("draws")

    def scene(self, part: PointImages, index: int) -> Scene:
        """An image of a part, no larger than ``max_side``, with what counts in it."""
        image, points = part[index]
        sizes = None if part.sizes is None else np.maximum(part.sizes[index], 1.0)
        scene = transforms.only_counted(Scene(image, points, sizes, part.mask(index)))
        return transforms.cap_long_side(scene, self.max_side) if self.max_side else scene

    def sample(self, scene: Scene, index: int) -> Sample:
        """The tensors of a scene."""
        density = density_map(
            scene.points, scene.size, self.sigma, self.density,
            head_sizes=scene.sizes if self.density == "size" else None,
        )  # fmt: skip
        pixels = np.ascontiguousarray(scene.image.transpose(2, 0, 1))
        sample = {
            "image": torch.from_numpy(pixels).float() / 255,
            "density": torch.from_numpy(density)[None],
            "count": torch.tensor(float(len(scene.points))),
            "index": torch.tensor(index),
        }
        if scene.mask is not None:
            sample["mask"] = torch.from_numpy(np.ascontiguousarray(scene.mask)).float()[None]
        return sample


class _Draws(Sampler[tuple[int, int]]):
    """Indices in a new order each time, each with a seed for what is random about its sample."""

    def __init__(self, count: int, repeats: int, seed: int) -> None:
        self.count, self.repeats = count, repeats
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count * self.repeats

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(len(self), generator=self.generator) % self.count
        seeds = torch.randint(2**62, (len(self),), generator=self.generator)
        yield from zip(order.tolist(), seeds.tolist(), strict=True)


class _Crops(Dataset[Sample]):
    def __init__(self, data: CountingData, part: PointImages) -> None:
        self.data, self.part = data, part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, draw: tuple[int, int]) -> Sample:
        index, seed = draw
        rng = np.random.default_rng(seed)
        scene = self.data.scene(self.part, index)
        if self.data.window is None:
            scene = transforms.floor_to_multiple(scene, self.data.multiple)
        else:
            height, width = self.data.window
            scene = transforms.random_crop(scene, height, width, rng)
        if self.data.flip and rng.random() < 0.5:
            scene = transforms.mirror(scene)
        return self.data.sample(scene, index)


class _WholeImages(Dataset[Sample]):
    def __init__(self, data: CountingData, part: PointImages) -> None:
        self.data, self.part = data, part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Sample:
        scene = self.data.scene(self.part, index)
        dots = torch.from_numpy(transforms.dots(scene))[None]
        return self.data.sample(scene, index) | {"dots": dots}


def collate(samples: list[Sample]) -> Sample:
    """Samples of one size as a batch.

    Raises:
        ArgumentError: They differ in size.
    """
    sizes = {tuple(sample["image"].shape[1:]) for sample in samples}
    if len(sizes) > 1:
        raise ArgumentError(
            f"The images of a batch differ in size: {', '.join(map(str, sorted(sizes)[:3]))}. Set "
            "crop= of the data, or batch_size=1."
        )
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
