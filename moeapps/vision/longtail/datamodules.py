"""Long-tailed images for Lightning: a named set, or one of your own."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from moeapps.data.locate import locate
from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.vision import datasets
from moeapps.vision.datasets.images import ImageSet, Splits
from moeapps.vision.longtail.base import without_images
from moeapps.vision.longtail.foreign import in_form_of
from moeapps.vision.longtail.loaders import EpochOrder, ImageBatches
from moeapps.vision.transforms import NORMALISATION, TwoView, batched, per_image
from moeapps.vision.views import ImageViews

# Weak view, strong view, normalisation by the beginning of a set's name; the last one fits all.
_VIEWS = {
    "cifar": ("cifar-weak", "cifar-strong", "cifar"),
    "pair-digits": ("pair-digits-weak", "pair-digits-strong", "none"),
    "digits": ("pair-digits-weak", "pair-digits-strong", "none"),
    "mnist": ("pair-digits-weak", "pair-digits-strong", "mnist"),
    "inaturalist": ("imagenet-weak", "imagenet-strong", "inaturalist"),
    "": ("cifar-weak", "cifar-strong", "half"),
}
_FILE_VIEWS = ("imagenet-weak", "imagenet-strong", "imagenet")


class LongTailData(lightning.LightningDataModule):
    """Training images with a long tail, validation images if there are any, and test images.

    Batches are ``{"image": [B, C, H, W], "label": [B], "index": [B]}``, with ``"strong"`` if the
    model wants two views. Sets in memory are augmented batch by batch, files one by one.

    Args:
        dataset: Name from :func:`moeapps.vision.datasets.list_datasets`.
        root: Data home; see :func:`moeapps.data.data_home`.
        imbalance: Images of the largest over those of the smallest class; None for the set's own.
        dataset_args: Further arguments of the set's reader, such as ``test: forward-50``.
        batch_size: Images per batch.
        views: Views of each training image, 1 or 2; None for what the model asks for.
        weak: Transform of the first view, see :mod:`moeapps.vision.transforms`; None for the set's.
        strong: Transform of the second view; None for the set's.
        normalisation: Of the pixels; None for the set's.
        val_share: Share of each class's training images held out, where the set has no validation
            images of its own; 0 validates nothing.
        empty_classes: What a class without a training image is: an ``"error"``, or left out of all
            splits (``"drop"``).
        foreign: Names of sets that show none of the classes. A test tells how well doubt finds
            their test images, which are brought to the size and channels of the own ones.
        drop_last: Leave out the training images that do not fill a batch.
        num_workers: Processes that decode files; not used for sets in memory.
        seed: Of the held-out images, the order and the views.
        download: Fetch missing files where the set has an address for them.

    Attributes:
        num_classes: After ``setup``.
        class_counts: After ``setup``: training images of each class.
        in_channels: After ``setup``.
        image_size: After ``setup``: height and width of a training image.

    Raises:
        UnknownNameError: For an unknown set or transform.
        ArgumentError: A class has no training image, there is no whole batch, or the images of the
            splits differ in size or mode.

    Example:
        >>> data = LongTailData("digits-lt", batch_size=64, views=2)
        >>> data.setup()
        >>> data.class_counts
        [100, 71, 51, 36, 26, 18, 13, 9, 6, 5]
        >>> batch = next(iter(data.train_dataloader()))
        >>> tuple(batch["image"].shape), tuple(batch["strong"].shape)
        ((64, 1, 8, 8), (64, 1, 8, 8))
    """

    splits: Splits
    num_classes: int
    class_counts: list[int]
    in_channels: int
    image_size: list[int]

    def __init__(
        self,
        dataset: str,
        *,
        root: str | Path | None = None,
        imbalance: float | None = None,
        dataset_args: dict[str, Any] | None = None,
        batch_size: int = 128,
        views: int | None = None,
        weak: str | None = None,
        strong: str | None = None,
        normalisation: str | None = None,
        val_share: float = 0.0,
        empty_classes: Literal["error", "drop"] = "error",
        foreign: Sequence[str] = (),
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 2:
            raise ArgumentError(f"batch_size={batch_size} cannot train a BatchNorm. Choose 2+.")
        if views not in (None, 1, 2):
            raise ArgumentError(f"views={views}. Choose 1, 2, or None for what the model wants.")
        if empty_classes not in ("error", "drop"):
            raise UnknownNameError("empty_classes", empty_classes, ("error", "drop"))
        foreign = [foreign] if isinstance(foreign, str) else [*foreign]
        self.save_hyperparameters()
        self.dataset, self.root, self.foreign = dataset, root, foreign
        self.dataset_args = dict(dataset_args or {})
        if imbalance is not None:
            self.dataset_args["imbalance"] = imbalance
        self.batch_size, self.views = batch_size, views
        self.weak, self.strong, self.normalisation = weak, strong, normalisation
        self.val_share, self.empty_classes = val_share, empty_classes
        self.drop_last, self.num_workers, self.seed = drop_last, num_workers, seed
        self.download = download
        self._own: Splits | None = None
        self._foreign: dict[str, ImageSet] = {}

    @classmethod
    def from_splits(
        cls,
        splits: Splits,
        name: str = "own",
        *,
        foreign_images: Mapping[str, ImageSet] | None = None,
        **arguments: Any,
    ) -> Self:
        """A module around images of your own.

        Args:
            splits: Images in splits.
            name: What reports call them; the beginning of a known set's name gives its views.
            foreign_images: Images of none of the classes, by the name that reports give them.
            **arguments: As of the class, without those that name a set.
        """
        module = cls(name, **arguments)
        module._own = splits
        module._foreign = dict(foreign_images or {})
        return module

    def prepare_data(self) -> None:
        """Download missing files, if allowed; runs in one process only."""
        if self.download:
            own = [self.dataset] if self._own is None else []
            for name in (*own, *self.foreign):
                locate(datasets.card(name), root=self.root, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the images, once."""
        if hasattr(self, "splits"):
            return
        found = self._own
        if found is None:
            found = self._read(self.dataset, **self.dataset_args)
        # Now, not after hours of training: a set may be missing.
        self._foreign |= {name: self._read(name).test for name in self.foreign}
        train, val = found.train, found.val
        if val is None and self.val_share:
            train, val = train.hold_out(self.val_share, self.seed)
        self.splits = self._without_empty(Splits(train, val, found.test, found.split_source))
        train = self.splits.train
        self.num_classes, self.class_counts = train.num_classes, train.class_counts.tolist()
        if train.in_memory:
            height, width, self.in_channels = train.shape
            for part, name in ((self.splits.val, "validation"), (self.splits.test, "test")):
                if part is not None and part.in_memory and part.shape != train.shape:
                    raise ArgumentError(
                        f"{name} images are {list(part.shape)} (height, width, channels), those "
                        f"for training {list(train.shape)}. Bring all to one size and mode."
                    )
        else:
            self.in_channels, height, width = self._files(train, "test")[0]["image"].shape
        self.image_size = [height, width]

    def _read(self, name: str, **arguments: Any) -> Splits:
        found = datasets.load(name, root=self.root, download=self.download, **arguments)
        if not isinstance(found, Splits):
            raise ConfigError(
                f"{name} has no images in splits. Choose one of the image sets: see "
                "moeapps data list."
            )
        return found

    def _without_empty(self, splits: Splits) -> Splits:
        """Refuse classes without a training image, or leave them out."""
        empty = np.flatnonzero(splits.train.class_counts == 0)
        if not len(empty):
            return splits
        if self.empty_classes == "error":
            raise ArgumentError(
                f"{without_images([splits.class_names[label] for label in empty])}. Set "
                "empty_classes='drop' to leave them out, or a smaller imbalance or val_share."
            )
        kept = np.flatnonzero(splits.train.class_counts)
        number = np.full(splits.num_classes, -1)
        number[kept] = np.arange(len(kept))
        names = tuple(splits.class_names[label] for label in kept)

        def without(part: ImageSet) -> ImageSet:
            rest = part.take(np.flatnonzero(number[part.labels] >= 0))
            return ImageSet(rest.images, number[rest.labels], names)

        val = None if splits.val is None else without(splits.val)
        return Splits(without(splits.train), val, without(splits.test), splits.split_source)

    # ---------------------------------------------------------------------------------- batches

    def train_dataloader(self) -> Any:
        """Shuffled, augmented batches; another order and other views each epoch."""
        two = self.views == 2
        return self._loader(
            self.splits.train, "strong" if two else "weak", shuffle=True, drop_last=self.drop_last
        )

    def val_dataloader(self) -> Any:
        """Batches in order; none where there are no validation images."""
        return [] if self.splits.val is None else self._loader(self.splits.val, "test")

    def test_dataloader(self) -> Any:
        """Batches in order."""
        return self._loader(self.splits.test, "test")

    def foreign_dataloaders(self) -> dict[str, Any]:
        """Batches of foreign images, in the form of the test images, by the name of their set."""
        known = self.splits.test
        return {
            name: self._loader(in_form_of(known, images), "test")
            for name, images in self._foreign.items()
        }

    def predict_dataloader(self) -> Any:
        """The test images."""
        return self.test_dataloader()

    def view_pairs(self, seed: int = 0) -> Any:
        """Two random views of every test image, without using its label: for test-time weights.

        The views are SADE's for colour images, two weak views of digits.
        """
        weak = self._names[0]
        name = "sade-view" if weak.startswith("cifar") else weak
        return self._loader(self.splits.test, "pairs", both=name, shuffle=True, seed=seed)

    def train_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Training images, not augmented, and their labels."""
        part = self.splits.train
        if part.in_memory:
            batch = self._loader(part, "test").batch(rows)
            return batch["image"], batch["label"]
        items = self._files(part, "test")
        images = torch.stack([items[int(row)]["image"] for row in rows])
        return images, torch.from_numpy(part.labels)[rows]

    @functools.cached_property
    def _names(self) -> tuple[str, str, str]:
        """Weak view, strong view, normalisation: what was given, else what suits the set."""
        usual = usual_views(self.dataset, in_memory=self.splits.train.in_memory)
        given = (self.weak, self.strong, self.normalisation)
        names = [mine or theirs for mine, theirs in zip(given, usual, strict=True)]
        if names[2] not in NORMALISATION:
            raise UnknownNameError("normalisation", names[2], NORMALISATION)
        return names[0], names[1], names[2]

    def _loader(
        self,
        part: ImageSet,
        kind: str,
        *,
        both: str = "",
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> Any:
        seed = self.seed if seed is None else seed
        weak, strong, normalisation = self._names
        if self.splits.train.in_memory:
            first = "none" if kind == "test" else both or weak
            second = both if kind == "pairs" else strong if kind == "strong" else None
            return ImageBatches(
                _pixels(part),
                torch.from_numpy(part.labels),
                self.batch_size if kind != "test" else max(self.batch_size, 250),
                weak=batched(first),
                strong=None if second is None else batched(second),
                normalise=NORMALISATION[normalisation],
                shuffle=shuffle,
                drop_last=drop_last,
                seed=seed,
            )
        items = self._files(part, kind, both=both, seed=seed)
        return DataLoader(
            items,
            self.batch_size,
            sampler=EpochOrder(items, shuffle=shuffle, seed=seed),
            drop_last=drop_last,
            num_workers=self.num_workers,
        )

    def _files(self, part: ImageSet, kind: str, *, both: str = "", seed: int = 0) -> ImageViews:
        """Single images, each decoded and put through a transform."""
        weak, strong, normalisation = self._names
        make = functools.partial(per_image, normalisation=NORMALISATION[normalisation])
        if kind in ("strong", "pairs"):
            first, second = (both, both) if kind == "pairs" else (weak, strong)
            return ImageViews(part, TwoView(make(first), make(second)), seed)
        return ImageViews(part, make("imagenet-test" if kind == "test" else weak), seed)


def usual_views(dataset: str, *, in_memory: bool) -> tuple[str, str, str]:
    """Weak view, strong view and normalisation that suit a set.

    Example:
        >>> usual_views("cifar10-lt", in_memory=True)
        ('cifar-weak', 'cifar-strong', 'cifar')
    """
    if in_memory:
        name = dataset.replace("_", "-")
        return next(views for begin, views in _VIEWS.items() if name.startswith(begin))
    return _VIEWS["inaturalist"] if dataset.startswith("inaturalist") else _FILE_VIEWS


def _pixels(part: ImageSet) -> Tensor:
    """All images ``[N, C, H, W]`` as they are stored."""
    assert isinstance(part.images, np.ndarray)
    return torch.from_numpy(np.ascontiguousarray(part.images.transpose(0, 3, 1, 2)))
