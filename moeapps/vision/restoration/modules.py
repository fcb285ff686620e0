"""The Lightning module for restoring photographs."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.registry import create_model
from moeapps.training.base import MoEModule
from moeapps.training.optim import build_optimizer, build_schedule
from moeapps.vision.restoration.losses import RestorationLoss
from moeapps.vision.restoration.metrics import psnr, ssim
from moeapps.vision.restoration.restored import LARGEST, Restored


class ImageRestorer(MoEModule):
    r"""A network from image to image, trained on pairs.

    .. math:: L = \mathrm{SmoothL1}_\beta(\hat x, x) + \lambda\, L_{perc}(\hat x, x)

    Validation logs ``val/psnr`` and ``val/ssim``, a test ``test/psnr``, ``test/ssim``, and both per
    task as ``test/psnr/<task>``: means over images of each image's score.

    Args:
        model: ``"mofme"``, ``"restoration_vit"``, ``"moe_vit"`` or another registered model of
            image restoration.
        model_args: Arguments of the model.
        lr: Learning rate, cosine to ``min_lr`` over the trainer's steps.
        min_lr: At the end.
        weight_decay: Of AdamW.
        warmup_epochs: Of a linear warm-up; at most a tenth of the training.
        beta: Error from which the loss is linear.
        perceptual: :math:`\lambda`; 0.04 in the paper.
        vgg_weights: Path of VGG16's weights, needed for the perceptual term.
        aux_losses: Weights of losses of the gates; none in the paper.
        tile: Side of the tiles in which whole images are restored, ``"auto"`` by the memory, or
            None for no tiles.
        overlap: Pixels that neighbouring tiles share; by default half a tile.
        blend: ``"uniform"`` or ``"hann"``, weights where tiles overlap.
        y_channel: Score the luma alone.
        select: ``"last"``: the weights at the end. ``"best"``: those of the best ``val/psnr``.

    Raises:
        UnknownNameError: A name is not known.
        ArgumentError: A number cannot be, or the perceptual term has no weights.
        ConfigError: There are no images to select by.

    Notes:
        Defaults are the published schedule. Departures: the gradient is clipped after the backward
        pass (by the trainer), and images for selection are never those of the test.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise
        Linear Modulation*, AAAI 2024.

    Example:
        >>> args = {"embed_dim": 16, "depth": 1, "num_heads": 2, "head_dim": 8}
        >>> module = ImageRestorer("mofme", model_args=args).eval()
        >>> module.restore(torch.rand(3, 37, 50)).shape
        torch.Size([3, 37, 50])
    """

    default_epochs = 200
    monitor_mode = "max"

    def __init__(
        self,
        model: str = "mofme",
        *,
        model_args: dict[str, Any] | None = None,
        lr: float = 2e-4,
        min_lr: float = 1e-6,
        weight_decay: float = 0.01,
        warmup_epochs: float = 3,
        beta: float = 1.0,
        perceptual: float = 0.0,
        vgg_weights: str | None = None,
        aux_losses: dict[str, float] | None = None,
        tile: int | Literal["auto"] | None = None,
        overlap: int | None = None,
        blend: Literal["uniform", "hann"] = "uniform",
        y_channel: bool = False,
        select: Literal["last", "best"] = "last",
    ) -> None:
        super().__init__(aux_losses=aux_losses)
        if select not in ("last", "best"):
            raise UnknownNameError("selection", select, ("last", "best"))
        if not lr > 0 or not 0 <= min_lr <= lr or warmup_epochs < 0:
            raise ArgumentError(
                f"lr={lr}, min_lr={min_lr} and warmup_epochs={warmup_epochs} cannot be. Choose lr "
                "above 0, min_lr from 0 to lr, warmup_epochs of 0 or more."
            )
        self.save_hyperparameters()
        self.monitor = "val/psnr" if select == "best" else None
        self.loss = RestorationLoss(perceptual, beta=beta, weights=vgg_weights)
        self.model: Any = create_model(model, **(model_args or {}))
        self._restored = Restored(())

    def setup(self, stage: str) -> None:
        """See that there is something to select by."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and self.monitor and data is not None and not data.val_dataloader():
            raise ConfigError(
                "select='best' needs validation images. Set val_share= of the data, or "
                "select='last'."
            )

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up and a cosine."""
        lr, steps = self.hparams["lr"], self.trainer.estimated_stepping_batches
        optimizer = build_optimizer(
            self.model, "adamw", lr=lr, weight_decay=self.hparams["weight_decay"]
        )
        if steps == float("inf"):
            raise ConfigError("The cosine needs an end. Set max_epochs of the trainer.")
        per_epoch = steps / max(1, self.trainer.max_epochs or 1)
        warmup = int(min(self.hparams["warmup_epochs"] * per_epoch, 0.1 * steps))
        schedule = build_schedule(
            optimizer, "cosine", warmup_steps=warmup, total_steps=max(int(steps), warmup + 1),
            final=self.hparams["min_lr"] / lr,
        )  # fmt: skip
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of crops."""
        images, target = batch["image"], batch["target"]
        total = self.shared_step(
            lambda: self.loss(self.model(images), target), batch_size=len(images)
        )
        if not bool(torch.isfinite(total.detach())):
            raise ArgumentError(
                f"The loss is {float(total.detach()):.3g} in epoch {self.current_epoch + 1}. Lower "
                "lr, or look for images that are not finite."
            )
        return total

    # --------------------------------------------------------------------------------- evaluation

    def restore(self, image: Tensor, *, tile: int | Literal["auto"] | None = None) -> Tensor:
        """One image restored.

        Args:
            image: ``[3, H, W]``, 0 to 1, any size.
            tile: In place of the module's own.

        Returns:
            ``[3, H, W]``, 0 to 1.
        """
        tile = self.hparams["tile"] if tile is None else tile
        with torch.no_grad():
            if tile is None:
                restored: Tensor = self.model(image[None])[0]
            else:
                from moeapps.vision.tiling import tiled_inference

                restored = tiled_inference(
                    self.model, image[None], tile, self.hparams["overlap"],
                    getattr(self.model, "patch_size", 1), blend=self.hparams["blend"],
                )[0]  # fmt: skip
        return restored.clamp(0, 1)

    def _scored(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        restored = torch.stack([self.restore(image) for image in batch["image"]])
        return restored, *self._scores(restored, batch["target"])

    def _scores(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        luma = self.hparams["y_channel"]
        return psnr(images, target, y_channel=luma), ssim(images, target, y_channel=luma)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Restore whole images."""
        _, decibels, similar = self._scored(batch)
        found = {"val/psnr": decibels.mean().float(), "val/ssim": similar.mean().float()}
        self.log_dict(found, prog_bar=True, batch_size=len(decibels), sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        data: Any = getattr(self.trainer, "datamodule", None)
        self._restored = Restored(tuple(getattr(data, "tasks", ())))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Restore whole images; of each task the first is kept to be shown."""
        restored, decibels, similar = self._scored(batch)
        before = self._scores(batch["image"], batch["target"])
        kept = self._restored
        for row, task in enumerate(batch["task"].tolist()):
            scores = (decibels, similar, *before)
            kept.add(task, tuple(float(score[row]) for score in scores))  # type: ignore[arg-type]
            images = {"input": batch["image"][row], "restored": restored[row]}
            gates = self._gates(batch["image"][row])
            if gates:
                kept.gates.append(np.stack([gate.mean((1, 2)).cpu().numpy() for gate in gates]))
            if task not in kept.examples:
                more = {"gates": gates[-1]} if gates else {}
                kept.show(task, **images, target=batch["target"][row], **more)

    def _gates(self, image: Tensor) -> list[Tensor]:
        """Weights of the experts per block, ``[N, h, w]``, in the middle of the image."""
        if not hasattr(self.model, "explain"):
            return []
        height, width = (max(0, side - LARGEST) // 2 for side in image.shape[-2:])
        middle = image[:, height : height + LARGEST, width : width + LARGEST]
        return [gate[0].float() for gate in self.model.explain(middle[None])]

    def on_test_epoch_end(self) -> None:
        """Log the means, those of each task too."""
        rows = np.array(self._restored.rows)
        for column, name in ((1, "psnr"), (2, "ssim")):
            self.log(f"test/{name}", float(rows[:, column].mean()))
            for task in np.unique(rows[:, 0]).astype(int):
                names = self._restored.tasks
                title = names[task] if task < len(names) else str(task)
                self.log(f"test/{name}/{title}", float(rows[rows[:, 0] == task, column].mean()))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Index and restored image."""
        return {"index": batch["index"], "restored": self._scored(batch)[0]}

    def results(self) -> dict[str, np.ndarray]:
        """Of the last test, for the report."""
        return self._restored.arrays()
