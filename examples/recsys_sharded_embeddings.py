"""Embedding tables larger than one device: each of two processes holds half of the rows.

python examples/recsys_sharded_embeddings.py    (seconds on a CPU; on GPUs: "cuda" and "nccl")
"""

import tempfile
from collections.abc import Iterator

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from moeapps import recsys
from moeapps.recsys.sharding import gather_embeddings, shard_embeddings
from moeapps.training.balancing.base import average_gradients, mean_over_processes

WORLD = 2  # processes


def build() -> recsys.Ranker:
    """The same weights in every process."""
    torch.manual_seed(0)
    fields = [recsys.Categorical(name, 50_001, 16) for name in ("user", "item")]
    return recsys.MMoE(recsys.FeatureSchema(fields), ["click", "like"], expert_dims=[32])


def train(model: recsys.Ranker, rank: int, world: int) -> Iterator[float]:
    """Steps on this process's share of each batch; gives the loss of the whole batch."""
    others = [*model.shared_parameters(), *model.tower_parameters()]
    groups = [{"params": list(model.embedding_parameters())}, {"params": others}]
    optimizer, criterion = torch.optim.Adam(groups, lr=1e-2), recsys.MultiTaskLoss(model.tasks)
    for ids in torch.randint(1, 101, (40, 64, 2)):  # the same in all processes, see build()
        own = ids.chunk(world)[rank]
        optimizer.zero_grad()
        loss = criterion(model({"cat": own}), own % 2.0).sum()
        loss.backward()
        average_gradients(others)  # those of the tables are means over the processes already
        optimizer.step()
        yield mean_over_processes(loss.detach()).item()


def work(rank: int, folder: str) -> None:
    """One of the processes."""
    distributed.init_process_group("gloo", f"file://{folder}/store", None, WORLD, rank)
    model = build()
    shard_embeddings(model, init_device_mesh("cpu", (WORLD,)))
    size = sum(table.to_local().nbytes for table in model.embedding_parameters())
    losses = list(train(model, rank, WORLD))
    gather_embeddings(model)
    torch.save((size, losses, model.state_dict()), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder,), WORLD)
        for rank in range(WORLD):
            size, losses, _ = torch.load(f"{folder}/{rank}.pt")
            print(f"process {rank}: {size / 1e6:.1f} MB of the tables, last loss {losses[-1]:.6f}")
    print(f"one process: last loss {list(train(build(), 0, 1))[-1]:.6f}")
