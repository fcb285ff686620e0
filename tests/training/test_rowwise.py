"""Row-wise Adagrad against its formula, sparse against dense; several optimisers as one."""

import copy
import time

import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError
from moeapps.training.rowwise import JointOptimizer, RowwiseAdagrad


def train(sparse, steps=5, optimizer=None):
    torch.manual_seed(0)
    table = nn.Embedding(50, 4, sparse=sparse)
    optimizer = RowwiseAdagrad(table.parameters(), lr=0.1)
    for step in range(steps):
        ids = torch.randint(50, (20,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (table(ids).square().sum(1) * torch.arange(1, 21)).sum().backward()
        optimizer.step()
    return table.weight.detach(), optimizer.state[table.weight]["accumulator"]


def test_sparse_and_dense_gradients_give_the_same():
    for one, other in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(one, other)


def test_update_is_the_formula():
    w = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    optimizer = RowwiseAdagrad([w], lr=0.5)
    g = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    for count in (1, 2):
        before = w.detach().clone()
        w.grad = g
        optimizer.step()
        step = 0.5 * g[1] / ((count * (9 + 16) / 2) ** 0.5 + 1e-8)
        torch.testing.assert_close(w.detach()[1], before[1] - step)
        assert torch.equal(w.detach()[0], before[0])


def test_rows_seen_twice_in_a_batch_add_their_gradients_first():
    w = nn.Embedding(3, 2, sparse=True)
    dense = nn.Embedding.from_pretrained(w.weight.detach().clone(), freeze=False)
    for table in (w, dense):
        table(torch.tensor([1, 1, 2])).sum().backward()
        RowwiseAdagrad(table.parameters(), lr=0.1).step()
    torch.testing.assert_close(w.weight, dense.weight)


def test_tables_only():
    with pytest.raises(ArgumentError, match=r"\[3\]"):
        RowwiseAdagrad([nn.Parameter(torch.ones(3))])
    with pytest.raises(ArgumentError, match="lr=-1"):
        RowwiseAdagrad([nn.Parameter(torch.ones(3, 2))], lr=-1)


def joint(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1))
    optimizer = JointOptimizer(
        [
            torch.optim.Adam(model[1].parameters(), lr=0.1),
            RowwiseAdagrad(model[0].parameters(), lr=0.2),
        ]
    )
    return model, optimizer


def step(model, optimizer, seed):
    ids = torch.randint(10, (6,), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = model(ids).square().mean()
    loss.backward()
    optimizer.step()


def test_parts_step_as_they_would_alone():
    model, optimizer = joint()
    other, _ = joint()
    alone = [
        torch.optim.Adam(other[1].parameters(), lr=0.1),
        RowwiseAdagrad(other[0].parameters(), lr=0.2),
    ]
    for seed in range(4):
        step(model, optimizer, seed)
        for part in alone:
            part.zero_grad()
        ids = torch.randint(10, (6,), generator=torch.Generator().manual_seed(seed))
        other(ids).square().mean().backward()
        for part in alone:
            part.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_resumed_training_goes_on_exactly():
    model, optimizer = joint()
    for seed in range(3):
        step(model, optimizer, seed)
    resumed, again = joint(seed=1)
    resumed.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(resumed, again, seed)
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_schedules_reach_every_part():
    model, optimizer = joint()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    step(model, optimizer, 0)
    schedule.step()
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.05, 0.1]


def test_closure_is_called_once():
    model, optimizer = joint()
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = model(torch.tensor([1])).sum()
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1


def test_a_large_table_costs_a_tenth_of_dense_adam():
    rows = 400_000

    def seconds(sparse):
        table = nn.Embedding(rows, 16, sparse=sparse)
        kind = RowwiseAdagrad if sparse else torch.optim.Adam
        optimizer = kind(table.parameters(), lr=1e-3)
        best = float("inf")
        for seed in range(4):
            ids = torch.randint(rows, (256, 26), generator=torch.Generator().manual_seed(seed))
            start = time.process_time()
            optimizer.zero_grad()
            table(ids).sum().backward()
            optimizer.step()
            best = min(best, time.process_time() - start)
        return best

    assert seconds(sparse=False) >= 5 * seconds(sparse=True)  # 2.6 M rows: see benchmarks
