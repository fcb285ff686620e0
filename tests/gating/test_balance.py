import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.gating.balance import BalanceBias, recomputing, step
from moeapps.gating.gates import Gate
from moeapps.gating.scores import Linear
from moeapps.gating.selections import softmax, topk

D, E = 6, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def skewed_gate(rate=0.005):
    gate = Gate(Linear(D, E), topk(1, score="sigmoid"), balance=BalanceBias(E, rate))
    with torch.no_grad():
        gate.score.weight.mul_(25)
        gate.score.weight[0] += 0.3
    return gate


def load(gate, x):
    return gate(x).counts().double() / x.shape[0]


def test_updates_follow_the_formula_and_keep_the_mean_at_zero():
    balance = BalanceBias(3, rate=0.1)
    balance.seen += torch.tensor([6, 3, 0])
    step(balance)
    torch.testing.assert_close(balance.bias, torch.tensor([-0.1, 0.0, 0.1]))
    balance.seen += torch.tensor([9, 0, 0])
    step(balance)
    delta = torch.tensor([-0.1, 0.1, 0.1])
    expected = torch.tensor([-0.1, 0.0, 0.1]) + delta - delta.mean()
    torch.testing.assert_close(balance.bias, expected)
    assert not balance.seen.any()


def test_even_loads_change_nothing():
    balance = BalanceBias(3)
    balance.seen += 7
    step(balance)
    assert not balance.bias.any()


def test_load_variance_falls_on_a_skewed_stream():
    gate = skewed_gate()
    x = torch.randn(2000, D) + 0.5
    before = load(gate.eval(), x).var()
    gate.train()
    for _ in range(100):
        gate(x)
        gating.step(gate)
    after = load(gate.eval(), x).var()
    assert after < before / 20


def test_the_bias_is_not_in_the_weights():
    gate = skewed_gate()
    with torch.no_grad():
        gate.balance.bias.copy_(torch.tensor([-9.0, 9.0, 0.0, 0.0]))
    x = torch.randn(9, D)
    routing = gate(x).check()
    assert (routing.indices == 1).all()
    torch.testing.assert_close(routing.weights[:, 0], gate.score(x).sigmoid()[:, 1])


def test_eval_freezes_the_bias_but_uses_it():
    gate = skewed_gate()
    gate.balance.bias[1] = 9.0
    gate.eval()
    assert (gate(torch.randn(9, D)).indices == 1).all()
    assert not gate.balance.seen.any()
    gate.balance.seen += torch.tensor([5, 0, 0, 0])
    kept = gate.balance.bias.clone()
    step(gate)
    assert torch.equal(gate.balance.bias, kept)


def test_micro_batches_add_up_and_padding_does_not_count():
    gate = skewed_gate()
    valid = torch.tensor([True] * 5 + [False] * 4)
    for _ in range(3):
        gate(torch.randn(9, D), valid=valid)
    assert gate.balance.seen.sum() == 15


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = skewed_gate()
        self.flags = []

    def forward(self, x):
        self.flags.append(recomputing())
        return x * self.gate(x).weights


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_is_not_counted_twice(reentrant):
    layer = Layer()
    x = torch.randn(9, D, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert layer.flags == [False, True]
    assert layer.gate.balance.seen.sum() == 9


def test_the_bias_is_saved_and_the_counter_is_not():
    assert set(BalanceBias(E).state_dict()) == {"bias"}


def test_the_bias_stays_float32_in_a_half_precision_model():
    assert skewed_gate().bfloat16().balance.bias.dtype == torch.float32


def test_useless_balance_is_refused():
    with pytest.raises(ArgumentError, match="no effect"):
        Gate(Linear(D, E), softmax, balance=BalanceBias(E))
    with pytest.raises(ArgumentError, match="rate"):
        BalanceBias(E, rate=0)


RANK = """
import sys
import torch
import torch.distributed as dist
from moeapps.gating import BalanceBias, step

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
model = torch.nn.ModuleList([BalanceBias(2, 0.1), BalanceBias(3, 0.1)])
# Alone, rank 0 would raise the other expert than rank 1; together expert 1 is the busier one.
model[0].seen += torch.tensor([[3, 0], [0, 5]][rank])
model[1].seen += torch.tensor([[0, 2, 0], [4, 0, 0]][rank])
step(model)
print([round(b, 4) for balance in model for b in balance.bias.tolist()])
"""


def test_all_ranks_count(tmp_path):
    store = tmp_path / "store"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(store)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=60)[0].strip() for rank in ranks]
    # counts [3, 5] and [4, 2, 0] with mean 2: steps [+, -] and [-, 0, +]
    assert outputs == ["[0.1, -0.1, -0.1, 0.0, 0.1]"] * 2
