"""The optimiser of a ranking model: embeddings apart from everything else."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from moeapps.recsys.ranker import Ranker
from moeapps.training.optim import OPTIMIZERS, parameter_groups
from moeapps.training.rowwise import JointOptimizer, RowwiseAdagrad

SPARSE_OPTIMIZERS = ("rowwise_adagrad", "sparse_adam")


def ranking_optimizer(
    module: nn.Module, model: Ranker, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """One optimiser for everything that learns.

    Embeddings are a group of their own without weight decay. With sparse gradients their tables
    belong to an optimiser that touches only the rows of the batch.

    Args:
        module: Everything that learns.
        model: The network in it.
        options: ``optimizer``, ``lr``, ``embedding_lr``, ``weight_decay``, ``sparse_grad`` and
            ``sparse_optimizer``, as of :class:`~moeapps.recsys.modules.MultiTaskRanker`.

    Returns:
        An optimiser whose groups are named ``embeddings``, ``rest`` and so on.
    """
    lr = options["lr"]
    tables = [table for table in model.embedding_parameters() if table.requires_grad]
    known = {id(table) for table in tables}
    groups = parameter_groups(module, lr=lr, weight_decay=options["weight_decay"])
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in known]
    groups = [group for group in groups if group["params"]]
    embeddings = {"name": "embeddings", "params": tables, "lr": options["embedding_lr"] or lr}
    if tables and not options["sparse_grad"]:
        groups.append({**embeddings, "weight_decay": 0.0})
    kind = cast(Any, OPTIMIZERS[options["optimizer"]])
    optimizer: torch.optim.Optimizer = kind(groups, lr=lr, fused=_can_fuse(module))
    if not tables or not options["sparse_grad"]:
        return optimizer
    sparse: Any = RowwiseAdagrad
    if options["sparse_optimizer"] == "sparse_adam":
        sparse = torch.optim.SparseAdam
    return JointOptimizer([optimizer, sparse([embeddings])])


def _can_fuse(module: nn.Module) -> bool:
    return all(p.device.type in ("cpu", "cuda") for p in module.parameters())
