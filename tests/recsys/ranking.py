"""Small logs and trainings for the tests of the Lightning module."""

import warnings

import lightning.pytorch as pl
import numpy as np
import torch

from moeapps.recsys.datamodules import RankingData
from moeapps.recsys.datasets.tables import Tables
from moeapps.recsys.modules import MultiTaskRanker
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, Task

SMALL = {"model_args": {"num_experts": 3, "expert_dims": [16], "tower_dims": [8]}, "lr": 0.01}
TASKS = (Task("click", group="watch"), Task("like", group="interaction"))


def columns(rows, seed, gaps=False):
    """Clicks follow the user and the age, likes the item; learnable in a few steps."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 20, rows), rng.integers(0, 15, rows)
    age = rng.normal(size=rows).astype(np.float32)
    click = (rng.random(rows) < 1 / (1 + np.exp(-(2 * age + (user % 3) - 1)))).astype(np.float32)
    like = (rng.random(rows) < np.where(item % 4 == 0, 0.7, 0.1)).astype(np.float32)
    stars = np.clip(np.round(2 + age), 0, 4).astype(np.float32)
    price = (age * 3 + (item % 2)).astype(np.float32)
    if gaps:
        like[::5] = np.nan
    return {
        "user": user, "item": item, "age": age, "click": click, "like": like, "stars": stars,
        "price": price,
    }  # fmt: skip


def ranking_data(tasks=TASKS, *, rows=512, batch_size=64, gaps=False, **arguments):
    schema = FeatureSchema(
        [Categorical("user", 1, 4), Categorical("item", 1, 4), Dense("age")], group_key="user"
    )
    parts = [columns(n, seed, gaps) for n, seed in ((rows, 0), (rows // 2, 1), (rows // 2, 2))]
    tables = Tables(schema, tasks, *parts, split_source="made", min_count=1)
    return RankingData.from_tables(tables, batch_size=batch_size, **arguments)


def trainer(**arguments):
    options = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return pl.Trainer(**{**options, **arguments})


def train(module=None, data=None, *, seed=0, ckpt_path=None, **arguments):
    """Fit without Lightning's advice; the module and its trainer."""
    torch.manual_seed(seed)
    module = MultiTaskRanker("mmoe", **SMALL) if module is None else module
    data = ranking_data() if data is None else data
    run = trainer(**arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, run


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.model.parameters()])
