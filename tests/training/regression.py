"""A small mixture regression for the training tests; also run as a script, to be killed.

Usage: regression.py FOLDER EPOCHS [CHECKPOINT]
"""

import random
import sys
import warnings

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from moeapps.gating import BalanceBias, Gate, Gaussian, Linear, MoE, StackedMLP, topk
from moeapps.training import AtomicCheckpointIO, MoEModule, build_optimizer, build_schedule


class Regression(MoEModule):
    """Noisy gate, dropout and augmentation from all three generators: resume must restore all."""

    def __init__(self, *, balance: float = 0.01, hidden: int = 8) -> None:
        super().__init__(aux_losses={"balance": balance, "router_z": 1e-3})
        self.save_hyperparameters()
        gate = Gate(
            Linear(4, 3), topk(2, score="sigmoid"), perturb=Gaussian(0.3), balance=BalanceBias(3)
        )
        self.model = MoE(gate, StackedMLP(3, 4, hidden, 1, dropout=0.2))

    def training_step(self, batch, batch_index):
        x, y = batch
        x = x + 0.01 * float(np.random.randn()) + 0.01 * random.gauss(0, 1)
        return self.shared_step(lambda: (self.model(x) - y).square().mean(), batch_size=len(x))

    def validation_step(self, batch, batch_index):
        x, y = batch
        self.shared_step(
            lambda: (self.model(x) - y).square().mean(), stage="val", batch_size=len(x)
        )

    def configure_optimizers(self):
        optimizer = build_optimizer(self, lr=0.01, weight_decay=0.01, gates={"lr": 0.003})
        schedule = build_schedule(optimizer, "cosine", warmup_steps=3, total_steps=60)
        return {
            "optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}
        }  # fmt: skip


def loaders():
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(7))
    data = TensorDataset(x, x.square().sum(-1, keepdim=True))
    return DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=40)


def trainer(folder, epochs, *callbacks, **options):
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    return pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", logger=False,
        plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), **({"enable_checkpointing": False} | options),
    )  # fmt: skip


def fit(folder, epochs, checkpoint=None, *callbacks, **options):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    module = Regression()
    keep = ModelCheckpoint(
        dirpath=folder, filename="{epoch}", save_top_k=-1, **({"monitor": None} | options)
    )
    trainer(folder, epochs, keep, *callbacks, enable_checkpointing=True).fit(
        module, *loaders(), ckpt_path=checkpoint
    )
    return module


if __name__ == "__main__":
    fit(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
