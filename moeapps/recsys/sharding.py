"""Embedding tables in parts: every process holds some rows of each table."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from moeapps.errors import ArgumentError
from moeapps.recsys.ranker import Ranker


@torch.no_grad()
def shard_embeddings(model: Ranker, mesh: DeviceMesh) -> None:
    """Keep only this process's rows of every embedding table.

    The tables become ``torch.distributed`` tensors, cut along the rows. In a forward pass every
    process sends its ids to all, each looks up the rows it has, and the sum goes back to the
    process of the batch's row; all processes have to call the model together, on equally many rows.

    Args:
        model: Built with the same seed in every process; changed in place. The parameters are new,
            so build the optimiser afterwards, with the embeddings in a parameter group of their
            own.
        mesh: One axis of processes. Only the own rows are moved to its device.

    Raises:
        ArgumentError: The model has pooled features or sparse gradients, which such tensors lack,
            or its tables are in parts already.

    Notes:
        A table's gradient is the mean over the processes, as ``DistributedDataParallel`` gives it
        for the other parameters. A ``state_dict`` holds this process's parts: save one per process,
        or gather first. A whole one can be loaded into a model in parts.
    """
    store = model.inputs.store
    store.require_whole("Sharding")
    pooled = [bag.name for bag in model.schema.bags if bag.pooling != "last"]
    if pooled or getattr(store, "sparse_grad", False):
        raise ArgumentError(
            f"Tables cannot be sharded: pooled features {pooled}, sparse_grad="
            f"{getattr(store, 'sparse_grad', False)}. Expected categorical features, sequences "
            "with pooling='last', and dense gradients."
        )
    assert isinstance(store.tables, nn.ParameterDict)
    for name, table in list(store.tables.items()):
        part = _own_rows(table.detach(), mesh)
        store.tables[name] = nn.Parameter(part, table.requires_grad)
    store.whole = False
    model.forget_recordings()


@torch.no_grad()
def gather_embeddings(model: Ranker) -> None:
    """Undo :func:`shard_embeddings`: whole tables in every process, to save or to serve."""
    store = model.inputs.store
    assert isinstance(store.tables, nn.ParameterDict)
    if store.whole:
        raise ArgumentError("The tables are whole. Call shard_embeddings(model, mesh) first.")
    for name, table in list(store.tables.items()):
        assert isinstance(table, DTensor)
        store.tables[name] = nn.Parameter(table.full_tensor(), table.requires_grad)
    store.whole = True
    model.forget_recordings()


def part_of(whole: Tensor, table: Tensor) -> Tensor:
    """A whole table cut as another one is."""
    assert isinstance(table, DTensor)
    return _own_rows(whole, table.device_mesh)


def _own_rows(table: Tensor, mesh: DeviceMesh) -> DTensor:
    parts = table.split(-(-len(table) // mesh.size()))  # the last ones may be shorter
    rank = mesh.get_local_rank()
    own = parts[rank] if rank < len(parts) else table[:0]
    return DTensor.from_local(
        own.to(mesh.device_type, copy=True), mesh, [Shard(0)],
        shape=table.shape, stride=table.stride(),
    )  # fmt: skip


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a sharded table for this process's ids, ``[B, ...] -> [B, ..., D]``."""
    assert isinstance(table, DTensor)
    mesh = table.device_mesh
    everyones = F.embedding(DTensor.from_local(ids, mesh, [Shard(0)]), table)
    assert isinstance(everyones, DTensor)
    found: Tensor = everyones.redistribute(mesh, [Shard(0)]).to_local()
    if found.requires_grad:
        found.register_hook(lambda grad: grad / mesh.size())
    return found
