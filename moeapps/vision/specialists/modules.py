"""The Lightning module for generalists, specialists, and the student that learns from them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from moeapps.errors import ArgumentError, ConfigError
from moeapps.registry import create_model
from moeapps.training.base import MoEModule
from moeapps.training.checkpoints import load_checkpoint
from moeapps.training.export import CONFIG, load_model
from moeapps.training.optim import build_optimizer, build_schedule
from moeapps.training.runs import RunFolder
from moeapps.vision.longtail.base import check_target
from moeapps.vision.specialists.knowledge_concentration import (
    KnowledgeConcentration,
    sigmoid_cross_entropy,
    vertical_precision,
)
from moeapps.vision.specialists.specialist_pool import SpecialistPool
from moeapps.vision.specialists.verticals import Verticals


class KnowledgeConcentrationModule(MoEModule):
    r"""Sigmoid cross-entropy to labels, or to the soft targets of specialists.

    Which of the three it is:

    - a *generalist* learns all classes from labels: neither ``vertical`` nor ``teachers``;
    - a *specialist* learns the classes of one vertical from labels, with ``vertical=v``;
    - a *student* learns all classes from specialists, with ``teachers=[...]`` or
      :meth:`learn_from`.

    Logs ``val/average_precision`` (mean over verticals; the best weights are those of its
    maximum), ``val/average_precision/<v>`` and ``val/accuracy``; likewise for a test, where a
    student is compared with its teachers: ``test/teachers/average_precision``.

    Args:
        model: ``"knowledge_concentration"`` or another registered image classifier that takes
            ``class_to_vertical``.
        model_args: Its arguments, without classes, verticals and channels.
        class_to_vertical: The vertical of every class.
        prefix: Instead: classes whose names start with the same so many characters are a vertical.
        vertical: Train the specialist of this one.
        teachers: A run folder, checkpoint or exported folder per vertical.
        top_k: Entries of a teacher that are kept.
        lr: Learning rate of AdamW, after a warm-up over a twentieth of the run a cosine to 0.
        weight_decay: Of AdamW.
        num_classes: By default the data's.
        in_channels: By default the data's.
        image_size: Height and width, for exports; by default the data's.

    Raises:
        ConfigError: Verticals, role and data do not fit.

    Notes:
        The paper's optimiser is not known to us; this one learns a hundred yes-or-no questions in a
        few hundred steps.

    Example:
        >>> module = KnowledgeConcentrationModule(
        ...     model_args={"backbone": "resnet8"}, class_to_vertical=[0, 0, 1], vertical=0,
        ...     num_classes=3, in_channels=1,
        ... )
        >>> module.model(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 2])
    """

    default_epochs = 30
    monitor = "val/average_precision"
    progress_metrics = ("train/loss", "val/average_precision", "val/accuracy")

    def __init__(
        self,
        model: str = "knowledge_concentration",
        *,
        model_args: dict[str, Any] | None = None,
        class_to_vertical: list[int] | None = None,
        prefix: int | None = None,
        vertical: int | None = None,
        teachers: list[str] | None = None,
        top_k: int = 100,
        lr: float = 5e-3,
        weight_decay: float = 1e-4,
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: list[int] | None = None,
    ) -> None:
        super().__init__()
        if (class_to_vertical is None) == (prefix is None):
            raise ConfigError("Give either class_to_vertical= or prefix=, so that verticals exist.")
        if vertical is not None and teachers is not None:
            raise ConfigError("A specialist (vertical=) has no teachers=. Choose one.")
        self.save_hyperparameters()
        self.model: Any = None
        self._pool: tuple[SpecialistPool, ...] = ()
        self._found: list[tuple[Tensor, Tensor]] = []
        self._taught: list[Tensor] = []
        self._tested: dict[str, list[float]] = {}
        if num_classes is not None and class_to_vertical is not None:
            self.assemble()

    # --------------------------------------------------------------------------- data and network

    def setup(self, stage: str) -> None:
        """Take classes and channels from the data, build the network once."""
        if self.model is not None:
            return
        names = ("num_classes", "in_channels", "image_size")
        data = self.take_from_data(*names, example="LongTailData")
        if self.hparams["class_to_vertical"] is None:
            self.hparams["class_to_vertical"] = verticals_by_prefix(
                data.splits.class_names, self.hparams["prefix"]
            )
            self.hparams["prefix"] = None  # a checkpoint holds the verticals themselves
        self.assemble()

    def assemble(self) -> None:
        """Build the network, and load the teachers."""
        groups, vertical = self.hparams["class_to_vertical"], self.hparams["vertical"]
        if len(groups) != self.hparams["num_classes"]:
            raise ConfigError(
                f"class_to_vertical has {len(groups)} entries, the data "
                f"{self.hparams['num_classes']} classes. Give every class a vertical."
            )
        self.verticals = Verticals(groups)
        if vertical is not None and not 0 <= vertical < len(self.verticals):
            raise ConfigError(f"vertical={vertical}: there are {len(self.verticals)}, from 0.")
        self.model = self.build()
        if self.hparams["teachers"] is not None:
            networks = [specialist_network(place) for place in self.hparams["teachers"]]
            self.learn_from(SpecialistPool(networks, groups, self.hparams["top_k"]))

    def build(self) -> KnowledgeConcentration:
        """The network alone."""
        groups, vertical = self.hparams["class_to_vertical"], self.hparams["vertical"]
        if vertical is not None:
            groups = [0] * groups.count(vertical)
        arguments = {
            "num_classes": len(groups),
            "class_to_vertical": groups,
            **(self.hparams["model_args"] or {}),
        }
        if self.hparams["in_channels"] is not None:
            arguments["in_channels"] = self.hparams["in_channels"]
        return cast(KnowledgeConcentration, create_model(self.hparams["model"], **arguments))

    def learn_from(self, pool: SpecialistPool) -> None:
        """Take soft targets from these specialists; they are no part of checkpoints."""
        if self.hparams["vertical"] is not None:
            raise ConfigError("A specialist (vertical=) learns from labels, not from teachers.")
        self._pool = (pool,)

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up and a cosine over the whole run."""
        options = {name: self.hparams[name] for name in ("lr", "weight_decay")}
        optimizer = build_optimizer(self.model, "adamw", **options)
        steps = max(2, int(min(self.trainer.estimated_stepping_batches, 2**62)))
        schedule = build_schedule(optimizer, "cosine", total_steps=steps, warmup_steps=steps // 20)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    # ----------------------------------------------------------------------- training and judging

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        """One batch; a specialist leaves out images of other verticals, and batches of one."""
        check_target(batch["label"], self.verticals.num_classes)
        images, labels = self._own(batch["image"], batch["label"])
        if len(labels) < 2:
            return None
        if self._pool:
            pool = self._pool[0].to(images.device)
            targets = pool(images, labels)
        else:
            targets = torch.nn.functional.one_hot(labels, self._width).float()
        return self.shared_step(
            lambda: sigmoid_cross_entropy(self.model(images), targets), batch_size=len(labels)
        )

    @property
    def _width(self) -> int:
        vertical = self.hparams["vertical"]
        return len(self.verticals.members[vertical]) if vertical is not None else len(
            self.verticals.of_class
        )  # fmt: skip

    def _own(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What a specialist knows, its classes numbered from 0; everything for others."""
        vertical = self.hparams["vertical"]
        if vertical is None:
            return images, labels
        rows = (self.verticals.of_class.to(labels.device)[labels] == vertical).nonzero().squeeze(1)
        members = torch.tensor(self.verticals.members[vertical], device=labels.device)
        return images[rows], torch.searchsorted(members, labels[rows])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect the scores."""
        images, labels = self._own(batch["image"], batch["label"])
        if len(labels):
            self._found.append((self.model(images).float().cpu(), labels.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Judge all validation images."""
        self._judge("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect the scores, and those of each image's own teacher."""
        self.validation_step(batch, batch_idx)
        if self._pool:
            pool = self._pool[0].to(batch["image"].device)
            self._taught.append(pool.answers(batch["image"], batch["label"]).cpu())

    def on_test_epoch_end(self) -> None:
        """Judge all test images."""
        labels = [of for _, of in self._found]
        self._tested = {"network": self._judge("test")}
        taught, self._taught = self._taught, []
        if taught:
            members = self.verticals.members
            precision = vertical_precision(torch.cat(taught), torch.cat(labels), members)
            self._tested = {"student": self._tested["network"], "teachers": precision}
            self._log("test/teachers/average_precision", torch.tensor(_mean(precision)), None)

    def results(self) -> dict[str, np.ndarray]:
        """Of the last test, for the report."""
        alone = self.hparams["vertical"]
        numbers = range(len(self.verticals)) if alone is None else [alone]
        return {
            "vertical_names": np.array(numbers),
            "vertical_sizes": np.array([len(self.verticals.members[v]) for v in numbers]),
            **{f"vertical_precision/{who}": np.array(of) for who, of in self._tested.items()},
        }

    def _judge(self, split: str) -> list[float]:
        found, self._found = self._found, []
        if not found:
            raise ArgumentError(
                f"There is no {split} image of vertical {self.hparams['vertical']} to judge."
            )
        scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        vertical = self.hparams["vertical"]
        alone = vertical is not None
        members = [list(range(self._width))] if alone else self.verticals.members
        precision = vertical_precision(scores, labels, members)
        self._log(f"{split}/average_precision", torch.tensor(_mean(precision)), None)
        self._log(f"{split}/accuracy", (scores.argmax(-1) == labels).float().mean(), None)
        for number, value in enumerate(precision):
            name = vertical if alone else number
            self._log(f"{split}/average_precision/{name}", torch.tensor(value), None)
        return precision

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Number of the image, class (a specialist's own numbers), and each class's sigmoid."""
        logits = self.model(batch["image"])
        return {
            "index": batch["index"],
            "label": logits.argmax(-1),
            "probability": self.model.probabilities(logits),
        }


def _mean(precision: Sequence[float]) -> float:
    """Over the verticals that have images."""
    defined = [value for value in precision if not math.isnan(value)]
    return sum(defined) / len(defined)


def verticals_by_prefix(names: Sequence[str], characters: int) -> list[int]:
    """One vertical per beginning of the class names, in alphabetical order.

    Raises:
        ConfigError: A name has fewer characters.

    Example:
        >>> verticals_by_prefix(["31", "07", "39"], 1)
        [1, 0, 1]
    """
    short = [name for name in names if len(name) < characters]
    if characters < 1 or short:
        raise ConfigError(
            f"prefix={characters} does not fit the class names"
            + (f", such as {short[0]!r}." if short else ": choose 1 or more.")
        )
    begins = sorted({name[:characters] for name in names})
    return [begins.index(name[:characters]) for name in names]


def specialist_network(place: str | Path) -> KnowledgeConcentration:
    """The trained network of a run folder, a checkpoint, or an exported folder.

    Raises:
        FileNotFoundError: There is no such file.
        RunFolderError: The folder holds neither a run nor an export.
        CheckpointError: It is damaged.
    """
    place = Path(place)
    if (place / CONFIG).is_file():
        return cast(KnowledgeConcentration, load_model(place))
    checkpoint = load_checkpoint(RunFolder.open(place).best if place.is_dir() else place)
    module = KnowledgeConcentrationModule(**checkpoint["hyper_parameters"])
    module.load_state_dict(checkpoint["state_dict"])
    return cast(KnowledgeConcentration, module.model.eval())
