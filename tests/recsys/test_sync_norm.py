"""Batch normalisation over two processes equals one process with all rows."""

import copy
from datetime import timedelta

import torch
import torch.multiprocessing as mp
from torch import distributed, nn

from moeapps.recsys.blocks import ExpertBank

WORLD = 2


def example():
    torch.manual_seed(0)
    bank = ExpertBank([2, 1], 5, [4, 3], norm="batch", act="silu", sync_norm=True).double()
    return bank, torch.randn(12, 2, 5).double(), torch.randn(12, 3, 3).double()


def losses(bank, x, weights):
    return (bank(x).square() * weights).mean()


def worker(rank, store, results):
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    bank, x, weights = example()
    model = nn.parallel.DistributedDataParallel(copy.deepcopy(bank))
    losses(model, x.chunk(WORLD)[rank], weights.chunk(WORLD)[rank]).backward()
    grads = {name: p.grad for name, p in model.module.named_parameters()}
    torch.save((grads, dict(model.module.named_buffers())), f"{results}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, args=(tmp_path / "store", tmp_path), nprocs=WORLD)
    bank, x, weights = example()
    losses(bank, x, weights).backward()
    for rank in range(WORLD):
        grads, buffers = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, parameter in bank.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, msg=name)
        for name, buffer in bank.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, msg=name)
