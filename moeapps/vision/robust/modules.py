"""The Lightning module for training against attacks."""

import warnings
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from moeapps.errors import ArgumentError, CollapseWarning, ConfigError, GateError, UnknownNameError
from moeapps.registry import create_model
from moeapps.training.base import MoEModule
from moeapps.training.optim import build_schedule
from moeapps.vision.longtail.base import check_target
from moeapps.vision.robust.attacks import PGD, check_budget, check_pixels
from moeapps.vision.robust.evaluation import RobustReport, evaluate_robustness, join
from moeapps.vision.robust.groups import confusion_groups
from moeapps.vision.robust.suites import (
    AutoAttack,
    adaptive_attacks,
    fixed_attacks,
    torchattacks,
)
from moeapps.vision.robust.trades import (
    ROUTER_OBJECTIVES,
    RouterObjective,
    Target,
    adversary,
    group_loss,
    routed_trades_loss,
    trades_loss,
)

SCHEMES = ("alternating", "joint")
_CLIP = 5.0
_COLLAPSED = 0.98


class AdversarialClassifier(MoEModule):
    r"""A network trained by TRADES, its router in turns with it.

    Each step of the alternating scheme finds adversaries and updates the network, then finds new
    ones and updates the router. The joint scheme updates all parameters by the network's loss.
    Networks without a router always train jointly. Dense networks and mixtures share everything
    else: adversary, losses, optimiser, schedule.

    Args:
        model: ``"advmoe"``, ``"dense_cnn"`` or another registered name with their calls.
        model_args: Arguments of the model; classes and channels come from the data.
        num_classes: By default the data's.
        in_channels: By default the data's.
        image_size: Height and width, for exports; by default the data's.
        scheme: ``"alternating"`` or ``"joint"``.
        router_objective: ``"label_mod"`` (the released code: the router predicts the label modulo
            N), ``"trades"`` (the paper: the network's own loss, through the scores), or
            ``"groups"`` (ours: it predicts groups of labels that attacks seldom leave).
        group_after: Epochs in which images take random pathways, before the groups are made of what
            attacks confused in the last of them.
        cover: Share of the images of a step that take a random pathway, and whose adversaries
            attack that one, whatever the router says.
        adversaries: ``"together"`` (the released code): one adversary moves network and router.
            ``"separate"``: the network's turn attacks the network behind the routes of the clean
            images, the router's turn the router, each with the whole budget.
        epsilon: Largest change of a pixel, in training and tests.
        step: Of the training adversary; 5/8 of epsilon if None.
        steps: Ascents of the training adversary.
        alpha: Weight of the router's cross-entropy to label modulo N.
        beta: Weight of the divergence.
        lr: Learning rate, cosine to 0.
        momentum: Of SGD.
        weight_decay: Of SGD.
        on_collapse: What an epoch with more than 98 % of the images at one expert is: ``"error"``
            or ``"warn"``.
        select: ``"last"``: the weights at the end. ``"best"``: those of the best
            ``val/robust_accuracy``.
        test_steps: Steps of the attacks in tests.
        autoattack: Test by AutoAttack too, of the optional package torchattacks; it takes as long
            as all others together.

    Raises:
        UnknownNameError: A name is not known.
        MissingExtraError: ``autoattack`` without torchattacks.
        ConfigError: The data does not tell its classes, or has no images to select by.
        ArgumentError: A number cannot be, or pixels are not between 0 and 1.
        GateError: The loss is not finite, or the router collapsed.

    Notes:
        Safeguards, against failures that are publicly reported: the router's gradient is clipped
        to norm 5, its loss must be finite, and the usage of experts is watched.

    Example:
        >>> module = AdversarialClassifier(
        ...     "dense_cnn", num_classes=10, model_args={"backbone": "small_cnn"}
        ... )
        >>> module.model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    default_epochs = 100
    groups: Tensor
    confusion: Tensor

    def __init__(
        self,
        model: str = "advmoe",
        *,
        model_args: dict[str, Any] | None = None,
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: list[int] | None = None,
        scheme: Literal["alternating", "joint"] = "alternating",
        router_objective: RouterObjective = "label_mod",
        cover: float = 0.0,
        adversaries: Literal["together", "separate"] = "together",
        group_after: int = 4,
        epsilon: float = 8 / 255,
        step: float | None = None,
        steps: int = 2,
        alpha: float = 6.0,
        beta: float = 6.0,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        on_collapse: Literal["error", "warn"] = "error",
        select: Literal["last", "best"] = "last",
        test_steps: int = 20,
        autoattack: bool = False,
    ) -> None:
        super().__init__()
        for kind, name, known in (
            ("scheme", scheme, SCHEMES),
            ("router objective", router_objective, ROUTER_OBJECTIVES),
            ("kind of adversaries", adversaries, ("together", "separate")),
            ("on_collapse", on_collapse, ("error", "warn")),
            ("selection", select, ("last", "best")),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        check_budget(epsilon, steps, 1, "ce")
        check_budget(epsilon, test_steps, 1, "ce")
        if not 0 <= cover <= 1:
            raise ArgumentError(f"cover={cover} is no share of the images. Choose 0 to 1.")
        if router_objective == "groups" and (scheme != "alternating" or group_after < 1):
            raise ArgumentError(
                "router_objective='groups' needs scheme='alternating' and group_after of 1 or more."
            )
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.monitor = "val/robust_accuracy" if select == "best" else None
        self.model: Any = None
        self._usage: Tensor | None = None
        self._reports: list[RobustReport] = []
        self._tested: RobustReport | None = None
        if num_classes is not None:
            self.assemble()

    def assemble(self) -> None:
        """Build the network from the hyper-parameters."""
        given = {"num_classes": self.hparams["num_classes"]}
        if self.hparams["in_channels"] is not None:
            given["in_channels"] = self.hparams["in_channels"]
        self.model = create_model(
            self.hparams["model"], **{**given, **(self.hparams["model_args"] or {})}
        )
        self.alternates = self.hparams["scheme"] == "alternating" and any(
            True for _ in self.model.router_parameters()
        )
        classes = torch.arange(self.model.num_classes)
        self.register_buffer("groups", classes % self.model.num_experts)
        self.register_buffer("confusion", torch.zeros(len(classes), len(classes)))

    def setup(self, stage: str) -> None:
        """Take classes and channels from the data, build the network once."""
        if self.model is None:
            self.take_from_data("num_classes", "in_channels", "image_size", example="PixelData")
            self.assemble()
        if self.hparams["autoattack"] and stage in ("fit", "test"):
            torchattacks()  # before hours of training, not after
        if stage == "fit" and self.monitor is not None:
            data: Any = getattr(self.trainer, "datamodule", None)
            if data is not None and not data.val_dataloader():
                raise ConfigError(
                    "select='best' needs validation images. Set val_share= of the data, or "
                    "select='last'."
                )

    def configure_optimizers(self) -> Any:
        """SGD for the network, and another for the router if it has its own turn."""
        groups = [list(self.model.parameters())]
        if self.alternates:
            groups = [list(self.model.network_parameters()), list(self.model.router_parameters())]
        options = {k: self.hparams[k] for k in ("lr", "momentum", "weight_decay")}
        optimizers = [torch.optim.SGD(group, **options) for group in groups]
        whole = self.trainer.estimated_stepping_batches  # batches, however many optimisers step
        epochs = self.trainer.max_epochs
        if whole == float("inf") or not epochs or epochs < 0:
            raise ConfigError("The cosine needs an end. Set max_epochs of the trainer.")
        steps = [int(whole)] * len(optimizers)
        if len(steps) > 1 and self.hparams["router_objective"] == "groups":
            steps[1] -= int(whole) * self.hparams["group_after"] // epochs
        schedules = [
            build_schedule(optimizer, "cosine", total_steps=max(1, number))
            for optimizer, number in zip(optimizers, steps, strict=True)
        ]
        return optimizers, [{"scheduler": s, "interval": "step"} for s in schedules]

    # ----------------------------------------------------------------------------------- training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The network's turn, then the router's."""
        images, labels = batch["image"], batch["label"]
        if batch_idx == 0:
            check_pixels(images)
        check_target(labels, self.model.num_classes)
        optimizers = _as_list(self.optimizers())
        loss = self._network_turn(optimizers[0], images, labels)
        self._log("train/loss", loss, len(images))
        if self.alternates and not self.grouping:
            loss = self._router_turn(optimizers[1], images, labels)
            self._log("train/router_loss", loss, len(images))
        schedules = _as_list(self.lr_schedulers())
        for schedule in schedules[:1] if self.grouping else schedules:
            schedule.step()

    @property
    def grouping(self) -> bool:
        """Groups of labels are still to be made."""
        wanted = self.alternates and self.hparams["router_objective"] == "groups"
        return wanted and self.current_epoch < self.hparams["group_after"]

    def _adversary(self, images: Tensor, route: Any, target: Target) -> Tensor:
        options = {name: self.hparams[name] for name in ("epsilon", "step", "steps")}
        if self.hparams["adversaries"] == "together":
            target = "both"
        return adversary(self.model, images, route=route, target=target, **options)

    def _training_route(self, images: Tensor) -> Any:
        """How the network is routed in this step; a tensor of experts where some are drawn."""
        cover, experts = self.hparams["cover"], self.model.num_experts
        drawn = torch.randint(experts, (len(images),), device=images.device)
        if self.grouping:
            return drawn
        separate = self.hparams["adversaries"] == "separate"
        if experts < 2 or not (cover or separate):
            return "hard"
        with torch.no_grad():
            scores = self.model.scores(images)
        if scores.shape[1] != 1:
            raise ArgumentError(
                "cover and separate adversaries need one router. Use routing='global'."
            )
        random = torch.rand(len(images), device=images.device) < cover
        return torch.where(random, drawn, scores[:, 0].argmax(-1))

    def _network_turn(
        self, optimizer: LightningOptimizer, images: Tensor, labels: Tensor
    ) -> Tensor:
        route = self._training_route(images)
        adversarial = self._adversary(images, route, "network")
        if isinstance(route, str) and self.alternates:
            route = "detached"
        logits, moved = self.model(images, route=route), self.model(adversarial, route=route)
        loss = trades_loss(logits, moved, labels, self.hparams["beta"])
        optimizer.zero_grad()
        self.manual_backward(loss)
        if not self.alternates:
            _clip(self.model.router_parameters(), loss)
        optimizer.step()
        if self.grouping:
            self.confusion.index_add_(0, labels, moved.detach().softmax(-1))
        else:
            self._count(images)
        return loss

    def _router_turn(self, optimizer: LightningOptimizer, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = self._adversary(images, "hard", "router")
        alpha, beta = self.hparams["alpha"], self.hparams["beta"]
        if self.hparams["router_objective"] == "trades":
            loss = routed_trades_loss(self.model, images, adversarial, labels, beta)
        else:
            scores, moved = self.model.scores(images), self.model.scores(adversarial)
            loss = group_loss(scores, moved, self.groups[labels], alpha=alpha, beta=beta)
        optimizer.zero_grad()
        self.manual_backward(loss)
        _clip(self.model.router_parameters(), loss)
        optimizer.step()
        return loss

    # --------------------------------------------------------------------------- usage of experts

    def on_train_epoch_start(self) -> None:
        """Count anew; make the groups when it is time."""
        self._usage = None
        if self.hparams["router_objective"] == "groups" and self.alternates:
            if self.current_epoch == self.hparams["group_after"]:
                found = confusion_groups(self.confusion, self.model.num_experts)
                self.groups.copy_(found)
            self.confusion.zero_()

    @property
    def usage(self) -> Tensor | None:
        """Share of this epoch's images at each router's experts, ``[L, N]``; None without any."""
        if self._usage is None or not len(self._usage):
            return None
        return self._usage / self._usage.sum(-1, keepdim=True)

    def _count(self, images: Tensor) -> None:
        with torch.no_grad():
            scores = self.model.scores(images)
        counts = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).sum(0)
        self._usage = counts if self._usage is None else self._usage + counts

    def on_train_epoch_end(self) -> None:
        """Log the largest share; more than 98 % at one expert is a collapse."""
        usage = self.usage
        if usage is None or self.model.num_experts < 2:
            return
        share = float(usage.amax())
        self._log("gate/largest_share", torch.tensor(share), None)
        if share <= _COLLAPSED:
            return
        text = (
            f"In epoch {self.current_epoch + 1} one expert got {share:.1%} of the images. Lower "
            "lr or use scheme='alternating'; on_collapse='warn' trains on."
        )
        if self.hparams["on_collapse"] == "error":
            raise GateError(text)
        warnings.warn(text, CollapseWarning, stacklevel=2)

    # --------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accuracy, clean and under a short attack."""
        attack = {"pgd": PGD(self.hparams["epsilon"], steps=10, restarts=1)}
        report = evaluate_robustness(
            self.model, batch["image"], batch["label"], attack, seed=batch_idx
        )
        size = len(batch["label"])
        self._log("val/accuracy", torch.tensor(report.accuracy()), size)
        self._log("val/robust_accuracy", torch.tensor(report.worst()), size)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Every fixed and every adaptive attack."""
        images, labels = batch["image"], batch["label"]
        attacks = {**self.fixed, **self.adaptive}
        seed = 1000 * batch_idx
        self._reports.append(evaluate_robustness(self.model, images, labels, attacks, seed=seed))

    @property
    def fixed(self) -> dict[str, Any]:
        """Attacks that treat the network as any other."""
        epsilon = self.hparams["epsilon"]
        found = fixed_attacks(epsilon, self.hparams["test_steps"])
        if self.hparams["autoattack"]:
            found["autoattack"] = AutoAttack(epsilon, self.model.num_classes)
        return found

    @property
    def adaptive(self) -> dict[str, Any]:
        """Attacks on router and pathway together."""
        return adaptive_attacks(
            self.hparams["epsilon"],
            self.hparams["test_steps"],
            num_experts=self.model.num_experts,
            fallback=getattr(self.model, "fallback", None) is not None,
        )

    def on_test_epoch_end(self) -> None:
        """Log accuracies, the worst cases, and how many routes changed."""
        self._tested = report = join(self._reports)
        self._reports = []
        self.log("test/accuracy", report.accuracy())
        for name in [*self.fixed, *self.adaptive]:
            self.log(f"test/accuracy/{name}", report.accuracy(name))
            if name in report.flipped:
                self.log(f"test/routes_changed/{name}", report.flips(name))
        self.log("test/robust_accuracy/fixed", report.worst(self.fixed))
        self.log("test/robust_accuracy/adaptive", report.worst())

    def results(self) -> dict[str, np.ndarray]:
        """Of the last test, for the report."""
        assert self._tested is not None
        return self._tested.arrays()


def _as_list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _clip(parameters: Any, loss: Tensor) -> None:
    """Clip the router's gradient; a loss or gradient that is not finite ends the training."""
    norm, loss = torch.nn.utils.clip_grad_norm_(list(parameters), _CLIP), loss.detach()
    if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
        raise GateError(
            f"The loss is {float(loss):.3g}, the norm of the router's gradient {float(norm):.3g}. "
            "Expected finite numbers: lower lr, or look for NaN in the images."
        )
