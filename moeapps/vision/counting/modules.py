"""The Lightning module for counting by density maps."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.registry import create_model
from moeapps.training.base import MoEModule
from moeapps.training.optim import build_optimizer, build_schedule
from moeapps.vision.counting.counted import BUCKETS, Counted, bucket_of
from moeapps.vision.counting.losses import counting_terms
from moeapps.vision.counting.metrics import CountingMetrics

LEVELS = (0, 1, 2, 3)
EXAMPLES = 4
_SAFE = 1024  # pixels of a side that go through the network at once, where tiles are "auto"


class CrowdCounter(MoEModule):
    r"""A density network, trained on the maps of all its levels.

    .. math:: L = \sum_j a_j \|D_j - s G\|^2 + \lambda_{rel} \sum_j a_j L_{rel}(D_j, s G)
        + \lambda_{imp} L_{imp} + \lambda_{att} L_{att}

    with the experts, the groups and the output as :math:`D_j`, per image. Validation logs
    ``val/mae`` and ``val/rmse``, a test ``test/mae``, ``test/rmse``, ``test/nae``,
    ``test/game/<level>`` and ``test/mae/<bucket>`` by the true count.

    Args:
        model: ``"hmode"``, ``"flat_density_mixture"``, ``"single_density"`` or another registered
            counter.
        model_args: Arguments of the model.
        level_weights: Weights :math:`a` of experts, groups and output.
        relative: :math:`\lambda_{rel}`, of the relative local counting; 0 in the released code.
        importance: :math:`\lambda_{imp}`, of the balance of each group.
        attention: :math:`\lambda_{att}`, of the attention.
        lr: Learning rate.
        weight_decay: Of Adam; decoupled.
        milestones: Epochs done before each drop of the rate.
        gamma: Factor of each drop.
        cosine: Let the rate fall to 0 over the trainer's steps, in place of milestones.
        warmup_steps: Of a linear warm-up.
        tile: Side of the tiles in which whole images are counted, ``"auto"`` by the memory, or
            None for no tiles.
        halo: Pixels around each tile that the network sees and nothing is counted in; by default a
            quarter of the tile.
        select: ``"last"``: the weights at the end. ``"best"``: those of the best ``val/mae``.

    Raises:
        UnknownNameError: A name is not known.
        ArgumentError: A number cannot be.
        ConfigError: There are no images to select by.

    Notes:
        Defaults are the published schedule: Adam at 2e-5, halved once after 100 of 200 epochs.

    References:
        Du, Shi, Deng, Zafeiriou, *Redesigning Multi-Scale Neural Network for Crowd Counting*, IEEE
        TIP 2023.

    Example:
        >>> args = {"backbone": "plain", "strides": [2, 4, 8], "slim": True, "decoder_width": 8}
        >>> module = CrowdCounter("hmode", model_args=args).eval()
        >>> module.count_map(torch.rand(3, 37, 50)).shape
        torch.Size([1, 37, 50])
    """

    default_epochs = 200
    monitor_mode = "min"

    def __init__(
        self,
        model: str = "hmode",
        *,
        model_args: dict[str, Any] | None = None,
        level_weights: Sequence[float] = (1.0, 2.0, 4.0),
        relative: float = 1.0,
        importance: float = 1.0,
        attention: float = 1.0,
        lr: float = 2e-5,
        weight_decay: float = 0.0,
        milestones: list[int] | None = None,
        gamma: float = 0.5,
        cosine: bool = False,
        warmup_steps: int = 0,
        tile: int | Literal["auto"] | None = None,
        halo: int | None = None,
        select: Literal["last", "best"] = "last",
    ) -> None:
        super().__init__()
        if select not in ("last", "best"):
            raise UnknownNameError("selection", select, ("last", "best"))
        weights = (relative, importance, attention, *level_weights)
        if len(level_weights) != 3 or min(weights) < 0 or level_weights[2] <= 0 or not lr > 0:
            raise ArgumentError(
                f"level_weights={list(level_weights)}, relative={relative}, "
                f"importance={importance}, attention={attention} and lr={lr} cannot be. Choose "
                "three level weights, the last and lr above 0, nothing negative."
            )
        level_weights = [*level_weights]
        milestones = [100] if milestones is None else [*milestones]
        self.save_hyperparameters()
        self.monitor = "val/mae" if select == "best" else None
        self.model: Any = create_model(model, **(model_args or {}))
        self.errors = CountingMetrics(levels=())
        self.test_errors = CountingMetrics(levels=LEVELS)
        self._counted = Counted()

    def setup(self, stage: str) -> None:
        """See that there is something to select by."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and self.monitor and data is not None and not data.val_dataloader():
            raise ConfigError(
                "select='best' needs validation images. Set val_share= of the data, or "
                "select='last'."
            )

    def configure_optimizers(self) -> Any:
        """Adam with drops of the rate, or a cosine."""
        optimizer = build_optimizer(
            self.model, "adamw", lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        warmup, steps = self.hparams["warmup_steps"], self.trainer.estimated_stepping_batches
        if self.hparams["cosine"]:
            if steps == float("inf"):
                raise ConfigError("The cosine needs an end. Set max_epochs of the trainer.")
            schedule: Any = build_schedule(
                optimizer, "cosine", warmup_steps=warmup, total_steps=max(int(steps), warmup + 1)
            )
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def factor(epoch: int) -> float:
            drops = sum(epoch >= milestone for milestone in self.hparams["milestones"])
            return float(self.hparams["gamma"] ** drops)

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of all levels, whose terms are logged one by one."""
        size = len(batch["image"])

        def loss() -> Tensor:
            terms = self.terms(batch)
            for name in ("relative", "importance", "attention"):
                self._log(f"aux/{name}", terms[name], size)
            return self.weighted(terms)

        return self.shared_step(loss, batch_size=size)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each term of the loss of a batch, without coefficients."""
        _, aux = self.model(batch["image"], return_aux=True)
        return counting_terms(
            aux,
            batch["density"],
            label_scale=self.model.label_scale,
            stride=self.model.stride,
            gate_stride=self.model.gate_stride,
            level_weights=self.hparams["level_weights"],
            mask=batch.get("mask"),
        )

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss, as the weighted sum of its terms.

        Raises:
            ArgumentError: It is not finite.
        """
        total = terms["levels"]
        for name in ("relative", "importance", "attention"):
            if weight := self.hparams[name]:
                total = total + weight * terms[name]
        if not bool(torch.isfinite(value := total.detach())):
            raise ArgumentError(
                f"The loss is {float(value):.3g} in epoch {self.current_epoch + 1}. Lower lr, or "
                "look for images that are not finite."
            )
        return total

    # --------------------------------------------------------------------------------- evaluation

    def count_map(self, image: Tensor, *, tile: int | Literal["auto"] | None = None) -> Tensor:
        """Density of one image, whose sum is the count.

        Args:
            image: ``[3, H, W]``, 0 to 1.
            tile: In place of the module's own.

        Returns:
            ``[1, H, W]``.
        """
        tile = self.hparams["tile"] if tile is None else tile
        image = image.to(self.device)
        with torch.no_grad():
            if tile is None:
                density: Tensor = self.model(image[None])[0]
                return density
            from moeapps.vision.tiling import tiled_density

            return tiled_density(
                self.model, image[None], tile, self.hparams["halo"], self.model.gate_stride
            )[0]

    def _counts(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Densities where something counts, and their sums."""
        density = torch.stack([self.count_map(image) for image in batch["image"]])
        if "mask" in batch:
            density = density * batch["mask"]
        return density, density.double().sum((1, 2, 3))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count whole images."""
        _, counts = self._counts(batch)
        self.errors.update(counts, batch["count"])

    def on_validation_epoch_end(self) -> None:
        """Log the errors."""
        found = self.errors.compute()
        self.log_dict(
            {"val/mae": found["mae"].float(), "val/rmse": found["rmse"].float()}, prog_bar=True
        )
        self.errors.reset()

    def on_test_epoch_start(self) -> None:
        """Choose the images to show: spread over the counts where the data tells them."""
        data: Any = getattr(self.trainer, "datamodule", None)
        shown = range(EXAMPLES)
        if data is not None and hasattr(data, "part"):
            order = data.part("test").counts.argsort(kind="stable")
            shown = order[np.linspace(0, len(order) - 1, EXAMPLES).round().astype(int)].tolist()
        self._counted = Counted(set(shown))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count whole images, and regions of them."""
        density, counts = self._counts(batch)
        true = batch.get("dots", batch["density"])
        self.test_errors.update(counts, batch["count"], density, true, batch.get("mask"))
        tile, longest = self.hparams["tile"], max(density.shape[-2:])
        fits = tile is None or longest <= (_SAFE if tile == "auto" else tile)
        self._counted.add(batch, density, self.model if fits else None)

    def on_test_epoch_end(self) -> None:
        """Log the errors, those of each bucket too."""
        found = {f"test/{name}": value for name, value in self.test_errors.compute().items()}
        self.test_errors.reset()
        counted = self._counted
        buckets = np.array([bucket_of(count) for count in counted.true])
        for number, name in enumerate(BUCKETS):
            if (buckets == number).any():
                found[f"test/mae/{name}"] = torch.tensor(
                    np.abs(counted.gaps)[buckets == number].mean()
                )
        self.log_dict({name: value.float() for name, value in found.items()})

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Index and count of each image."""
        return {"index": batch["index"], "count": self._counts(batch)[1]}

    def results(self) -> dict[str, np.ndarray]:
        """Of the last test, for the report."""
        return self._counted.arrays()
