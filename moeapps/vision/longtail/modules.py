"""The Lightning module for classifiers of long-tailed images."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from moeapps import gating
from moeapps.errors import ArgumentError, CheckpointError, ConfigError, UnknownNameError
from moeapps.registry import create_model
from moeapps.training.base import MoEModule
from moeapps.training.best_weights import BestWeights
from moeapps.training.callbacks import GateStatistics
from moeapps.training.checkpoints import load_checkpoint
from moeapps.training.export import CONFIG, load_model
from moeapps.training.runs import RunFolder
from moeapps.vision.longtail.aggregate import Aggregator, MeanLogits, WeightedLogits
from moeapps.vision.longtail.balpoe import mixup
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.early_exit import Doubt, ExitRule, MaxProb, Sequential
from moeapps.vision.longtail.expert_assignment import (
    ExpertAssignment,
    balanced_batches,
    fit_expert_assignment,
)
from moeapps.vision.longtail.ldam import LDAM
from moeapps.vision.longtail.loaders import Batch
from moeapps.vision.longtail.ride import RIDE
from moeapps.vision.longtail.sade import test_time_weights
from moeapps.vision.longtail.scoring import Predictions, expert_scores, scores, uncertainty

EXITS = ("assignment", "max_prob", "doubt")
_STATISTICS_EVERY = 50  # steps; most aggregators weigh all experts alike


class LongTailClassifier(MoEModule):
    r"""A method for long-tailed classes, trained epoch by epoch as published.

    SGD with a rate of

    .. math:: \eta_t = \eta \begin{cases} t / w & t \le w \\ \gamma^{\#\{m < t\}} \text{ or }
        \tfrac12 (1 + \cos \pi \tfrac{t - 1}{T}) & t > w \end{cases}

    in epoch :math:`t` (from 1), with milestones :math:`m`. Validation logs ``val/accuracy``,
    ``val/balanced_accuracy``, ``val/accuracy/{many,medium,few}`` and ``val/loss`` (cross-entropy);
    a test adds calibration, what doubt is worth (for wrong answers, rare classes and the foreign
    images of the data), and what each expert does.

    Args:
        model: Registered name, for example ``"mdcs"``.
        model_args: Arguments of the model, without classes, counts and channels.
        lr: Learning rate.
        trunk_lr: Learning rate of what the experts share; None for ``lr``.
        momentum: Of SGD.
        nesterov: Of SGD.
        weight_decay: Of SGD, for all weights.
        milestones: Last epoch (from 1) before each drop of the rate.
        gamma: Factor of each drop.
        warmup_epochs: Epochs of a linear warm-up.
        cosine: Let the rate fall to 0 over the trainer's epochs, in place of milestones.
        mixup_alpha: Mix the images of each batch; 0 does not.
        teacher: RIDE's distillation: a run folder, checkpoint or exported folder of a larger model.
        early_exit: Leave experts out at test time: ``"assignment"`` (RIDE's second stage, trained
            at the end of ``fit``), ``"max_prob"``, or ``"doubt"`` (TLC's dynamic engagement).
        early_exit_args: ``threshold`` of a rule; ``epochs``, ``batch_size``, ``lr``, ``pos_weight``
            and ``top_n`` of the second stage.
        test_time: Learn how to weigh the experts from the unlabelled test images, as SADE does.
        test_time_args: Arguments of :func:`moeapps.vision.longtail.sade.test_time_weights`.
        many: Classes with more training images are "many".
        few: Classes with fewer training images are "few".
        select: ``"last"``: the weights at the end. ``"best"``: those of the best
            ``val/balanced_accuracy``.
        num_classes: By default the data's.
        class_counts: By default the data's.
        in_channels: By default the data's.
        image_size: Height and width, for exports; by default the data's.

    Raises:
        UnknownNameError: A name is not known.
        ConfigError: Options do not fit the model or the data.

    Example:
        >>> module = LongTailClassifier(
        ...     "ride", model_args={"backbone": "resnet8"}, num_classes=3, class_counts=[9, 3, 1]
        ... )
        >>> module.model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 3])
        >>> [round(module.rate(epoch, 200), 2) for epoch in (1, 5, 160, 161, 181)]
        [0.2, 1.0, 1.0, 0.1, 0.01]
    """

    keeps_best = True
    default_epochs = 200
    model: LongTailModel

    def __init__(
        self,
        model: str = "mdcs",
        *,
        model_args: dict[str, Any] | None = None,
        lr: float = 0.1,
        trunk_lr: float | None = None,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        milestones: list[int] | None = None,
        gamma: float = 0.1,
        warmup_epochs: int = 5,
        cosine: bool = False,
        mixup_alpha: float = 0.0,
        teacher: str | None = None,
        early_exit: Literal["assignment", "max_prob", "doubt"] | None = None,
        early_exit_args: dict[str, Any] | None = None,
        test_time: bool = False,
        test_time_args: dict[str, Any] | None = None,
        many: float = 100,
        few: float = 20,
        select: Literal["last", "best"] = "last",
        num_classes: int | None = None,
        class_counts: list[int] | None = None,
        in_channels: int | None = None,
        image_size: list[int] | None = None,
    ) -> None:
        super().__init__()
        if early_exit is not None and early_exit not in EXITS:
            raise UnknownNameError("early exit", early_exit, EXITS)
        if select not in ("last", "best"):
            raise UnknownNameError("selection", select, ("last", "best"))
        if early_exit is not None and test_time:
            raise ConfigError("early_exit and test_time exclude each other. Choose one.")
        milestones = [160, 180] if milestones is None else [*milestones]
        self.save_hyperparameters()
        self.monitor = "val/balanced_accuracy" if select == "best" else None
        self.score = math.nan
        self._found = Predictions()
        self._tested: Predictions | None = None
        self._foreign: dict[str, Tensor] = {}
        if num_classes is not None and class_counts is not None:
            self.assemble()

    # --------------------------------------------------------------------------- data and network

    def build(self) -> LongTailModel:
        """Build the network from the hyper-parameters, with its aggregator at test time."""
        arguments = dict(self.hparams["model_args"] or {})
        for name in ("num_classes", "class_counts", "in_channels"):
            if self.hparams[name] is not None:
                arguments[name] = self.hparams[name]
        model = cast(LongTailModel, create_model(self.hparams["model"], **arguments))
        if self.hparams["early_exit"] is not None:
            model.aggregate = Sequential(self._exit_rule(model), model.aggregate)
        if self.hparams["test_time"]:
            if type(model.aggregate) is not MeanLogits:
                raise ConfigError(
                    f"test_time learns the weights of a mean of logits, but "
                    f"{self.hparams['model']} answers by {type(model.aggregate).__name__}. Leave "
                    "out test_time, or choose a model that averages logits, such as sade."
                )
            model.aggregate = WeightedLogits([1.0] * model.num_experts)
        return model

    def _exit_rule(self, model: LongTailModel) -> ExitRule:
        options = self.hparams["early_exit_args"] or {}
        if self.hparams["early_exit"] == "assignment":
            return ExpertAssignment(
                model.backbone.features,
                num_experts=model.num_experts,
                num_classes=model.num_classes,
                top_n=options.get("top_n", 30),
            )
        if self.hparams["early_exit"] == "max_prob":
            return MaxProb(**options)
        return Doubt(**{"conflict": getattr(model, "conflict", "released"), **options})

    def assemble(self) -> None:
        """Build the network. Convolutions are faster with the channels last."""
        self.model = self.build().to(memory_format=torch.channels_last)
        aggregate = self.model.aggregate
        # What judges the epochs: the early exit or the weights are learned only later.
        inner = aggregate.inner if isinstance(aggregate, Sequential) else aggregate
        self._whole: tuple[Aggregator] = (inner,)

    def setup(self, stage: str) -> None:
        """Take classes and counts from the data, build the network once, ask for its views."""
        if not hasattr(self, "model"):
            names = ("class_counts", "num_classes", "in_channels", "image_size")
            self.take_from_data(*names, example="LongTailData")
            self.assemble()
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "class_counts"):
            return
        for name in ("num_classes", "class_counts"):
            if self.hparams[name] != getattr(data, name):
                raise ArgumentError(
                    f"The network was built for {name}={self.hparams[name]}, the data has "
                    f"{getattr(data, name)}. Use the data it was built for."
                )
        if data.views is None:
            data.views = self.model.views
        elif data.views < self.model.views:
            raise ConfigError(
                f"{self.hparams['model']} needs {self.model.views} views of each image, the data "
                f"gives {data.views}. Leave out views=."
            )
        if stage == "fit":
            self._check_options(data)

    def _check_options(self, data: Any) -> None:
        if self.hparams["select"] == "best" and data.splits.val is None:
            raise ConfigError(
                "select='best' needs validation images, of which the set has none. Set val_share= "
                "of the data, or select='last'."
            )
        soft = self.model.views == 1 and not isinstance(self.model, LDAM)
        if self.hparams["mixup_alpha"] and not soft:
            raise ConfigError(
                f"{self.hparams['model']} has margins or views of single images, so it cannot "
                "learn from mixed ones. Set mixup_alpha: 0."
            )
        if self.hparams["teacher"] is not None:
            if not isinstance(self.model, RIDE):
                raise ConfigError("teacher= is RIDE's distillation. Use model: ride, or leave out.")
            self.model.distill_from(teacher_network(self.hparams["teacher"]))

    # ----------------------------------------------------------------------------------- training

    @property
    def progress_metrics(self) -> tuple[str, ...]:
        """Logged names that a line of progress shows."""
        groups = tuple(f"val/accuracy/{name}" for name in ("many", "medium", "few"))
        return ("train/loss", "val/loss", "val/balanced_accuracy", *groups)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Those of every module, and the best weights if they are wanted."""
        if self.trainer.barebones:
            return []
        found: list[pl.Callback] = [GateStatistics(_STATISTICS_EVERY)]
        if self.hparams["select"] == "best":
            found.append(BestWeights(patience=None))
        kinds = {type(callback) for callback in found}
        given = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        more = [one for one in super().configure_callbacks() if type(one) not in kinds]
        return [one for one in (*found, *more) if type(one) not in given]

    def rate(self, epoch: int, epochs: int) -> float:
        """Share of the learning rate in an epoch (from 1) of so many."""
        warmup = self.hparams["warmup_epochs"]
        if epoch <= warmup:
            return epoch / float(warmup)
        if self.hparams["cosine"]:
            return (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        drops = sum(epoch > last for last in self.hparams["milestones"])
        return float(self.hparams["gamma"] ** drops)

    def configure_optimizers(self) -> Any:
        """SGD, its rate set once per epoch."""
        epochs = self.trainer.max_epochs or 0
        if self.hparams["cosine"] and epochs < 1:
            raise ConfigError("A cosine schedule needs trainer.max_epochs.")
        shared = list(self.model.backbone.trunk.parameters())
        inside = {id(parameter) for parameter in shared}
        trunk_lr = self.hparams["trunk_lr"]
        groups = [
            {"params": shared, "lr": self.hparams["lr"] if trunk_lr is None else trunk_lr},
            {"params": [p for p in self._learned() if id(p) not in inside]},
        ]
        options = {name: self.hparams[name] for name in ("lr", "momentum", "weight_decay")}
        optimizer = torch.optim.SGD(groups, nesterov=self.hparams["nesterov"], **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: self.rate(done + 1, epochs)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]

    def _learned(self) -> Iterator[torch.nn.Parameter]:
        """All but the aggregator's, which is learned at the end of training or at test time."""
        apart = {id(parameter) for parameter in self.model.aggregate.parameters()}
        return (p for p in self.model.parameters() if id(p) not in apart)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The method's loss; all views of a batch go through one call."""
        images, target = batch["image"], batch["label"]
        if self.model.views == 2:
            images = torch.cat([images, batch["strong"]])
        if self.hparams["mixup_alpha"]:
            images, target = mixup(
                images, target, num_classes=self.model.num_classes,
                alpha=self.hparams["mixup_alpha"],
            )  # fmt: skip

        def task_loss() -> Tensor:
            _, aux = self.model(images, return_aux=True)
            return self.model.loss(aux, target, self.current_epoch + 1)

        return self.shared_step(task_loss, batch_size=len(target))

    def on_fit_end(self) -> None:
        """RIDE's second stage, on the weights that were chosen."""
        if self.hparams["early_exit"] != "assignment":
            return
        options = dict(self.hparams["early_exit_args"] or {})
        draw = {name: options.pop(name) for name in ("batch_size", "epochs") if name in options}
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        labels = torch.from_numpy(data.splits.train.labels)
        rows = balanced_batches(labels, **draw)
        batches = (
            tuple(part.to(self.device) for part in data.train_rows(chosen)) for chosen in rows
        )
        found = fit_expert_assignment(
            self.model, cast(Any, batches), num_steps=len(rows), **options
        )
        self.model.aggregate = Sequential(found.rule, self._whole[0])

    # --------------------------------------------------------------------------------- evaluation

    def on_test_start(self) -> None:
        """Learn the weights of the experts from the test images, if they are wanted."""
        self._adapt()

    def on_predict_start(self) -> None:
        """Likewise."""
        self._adapt()

    def _adapt(self) -> None:
        if self.hparams["test_time"]:
            with torch.inference_mode(False):
                pairs = self.trainer.datamodule.view_pairs()  # type: ignore[attr-defined]
                options = self.hparams["test_time_args"] or {}
                self.model.aggregate = test_time_weights(self.model, pairs, **options)

    def _ask(self, images: Tensor, **options: Any) -> tuple[Any, Tensor]:
        """What the model gives, and how many experts each image used."""
        with gating.record(self.model) as recording:
            given = self.model(images, **options)
        (*_, routing) = (calls[-1] for calls in recording.routings.values() if calls)
        return given, (routing.weights > 0).sum(-1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the output; during training of all experts together."""
        output, aux = self.model(batch["image"], return_aux=True)
        if self.trainer.state.fn == TrainerFn.FITTING:
            output = self._whole[0](aux["logits"], aux["features"])
        self._found.add(output=output, target=batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Judge all validation images."""
        found = self._judge("val", self._found.finish())
        self.score = found["val/balanced_accuracy"]

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the output and all that the report shows."""
        (output, aux), used = self._ask(batch["image"], return_aux=True)
        self._found.add(output=output, target=batch["label"], logits=aux["logits"], used=used)

    def on_test_epoch_end(self) -> None:
        """Judge all test images, and doubt about foreign ones where the data has them."""
        self._tested = self._found.finish()
        data: Any = getattr(self.trainer, "datamodule", None)
        strangers = data.foreign_dataloaders() if hasattr(data, "foreign_dataloaders") else {}
        self._foreign = {name: self._doubts(loader) for name, loader in strangers.items()}
        self._judge("test", self._tested)

    def _doubts(self, loader: Iterable[Batch]) -> Tensor:
        """Uncertainty about every image, on the scale of the test images."""
        found = []
        for batch in loader:
            output, aux = self.model(batch["image"].to(self.device), return_aux=True)
            found.append(uncertainty(self.model, output, aux["logits"]).cpu())
        return torch.cat(found)

    def _judge(self, split: str, rows: Predictions) -> dict[str, float]:
        found = scores(rows, self.model, many=self.hparams["many"], few=self.hparams["few"])
        if split == "test":
            found |= expert_scores(rows, self.model, self._foreign)
            if isinstance(self.model.aggregate, WeightedLogits):
                weights = self.model.aggregate.weights.tolist()
                found |= {f"weight/{k}": weight for k, weight in enumerate(weights, 1)}
        found = {f"{split}/{name}": value for name, value in found.items()}
        for name, value in found.items():
            self._log(name, torch.tensor(value), None)
        return found

    def results(self) -> dict[str, Any]:
        """Of the last test, for the report."""
        from moeapps.vision.longtail.scoring import report_arrays

        assert self._tested is not None
        data = getattr(self.trainer, "datamodule", None)
        names = data.splits.class_names if data is not None else None
        return report_arrays(
            self._tested, self.model, many=self.hparams["many"], few=self.hparams["few"],
            class_names=names, foreign=self._foreign,
        )  # fmt: skip

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Number of the image, class, probabilities, and experts used; an early exit skips."""
        output, used = self._ask(batch["image"])
        return {
            "index": batch["index"],
            "label": output.argmax(-1),
            "experts": used,
            "probability": output.softmax(-1),
        }


def teacher_network(place: str | Path) -> LongTailModel:
    """The trained network of a run folder, a checkpoint, or an exported folder.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    place = Path(place)
    if (place / CONFIG).is_file():
        return cast(LongTailModel, load_model(place))
    if place.is_dir():
        place = RunFolder.open(place).best
    if not place.is_file():
        raise CheckpointError(
            f"teacher={place} is not there. Expected a finished run, a checkpoint or an export."
        )
    checkpoint = load_checkpoint(place)
    module = LongTailClassifier(**checkpoint["hyper_parameters"])
    module.load_state_dict(checkpoint["state_dict"])
    return module.model.eval()
