import pytest
import torch

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.kernels import ALL_STRATEGIES, Networks, all_experts, folded
from moeapps.kernels.dense import _choose_all


def make(E=3, D=5, F=7, out=4, gated=False, two=True, bias=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    width = 2 * F if gated else F
    b1, b2 = (leaf(E, width), leaf(E, out)) if bias else (None, None)
    if not two:
        return Networks(leaf(E, out, D), leaf(E, out) if bias else None)
    return Networks(leaf(E, width, D), b1, leaf(E, out, F), b2, gated=gated)


def slow(x, nets):
    return torch.stack([f(x) for f in nets.functions()], dim=1)


def gradients(y, x, nets):
    leaves = [x, *(t for t in nets[:4] if t is not None)]
    return torch.autograd.grad(
        (y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).sum(), leaves
    )


CASES = [{}, {"gated": True}, {"two": False}, {"bias": False}, {"two": False, "bias": False}]


@pytest.mark.parametrize("N", [0, 1, 7, 513])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("strategy", [*ALL_STRATEGIES, None])
def test_all_experts_equals_one_after_another(strategy, case, N):
    nets = make(**case)
    x = torch.randn(N, 5, dtype=torch.float64, requires_grad=True)
    y, want = all_experts(x, nets, strategy=strategy), slow(x, nets)
    torch.testing.assert_close(y, want, atol=1e-10, rtol=1e-10)
    for a, b in zip(gradients(y, x, nets), gradients(want, x, nets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_folded_equals_weighted_sum_of_all(case):
    nets = make(**case)
    x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    w = torch.rand(9, 3, dtype=torch.float64, requires_grad=True)
    y = folded(x, w, nets)
    want = (w.unsqueeze(2) * slow(x, nets)).sum(1)
    torch.testing.assert_close(y, want, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(y.pow(2).sum(), [x, w, nets.w1]),
        torch.autograd.grad(want.pow(2).sum(), [x, w, nets.w1]),
    )


def test_rule_loops_only_when_training_on_many_rows():
    nets = make()
    few, many = torch.zeros(512, 5), torch.zeros(513, 5)
    assert _choose_all(few, nets) == "stacked"
    assert _choose_all(many, nets) == "loop"
    with torch.no_grad():
        assert _choose_all(many, nets) == "stacked"


def test_autocast_reaches_the_dense_layout():
    nets, x = make(dtype=torch.float32), torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert all_experts(x, nets).dtype == torch.bfloat16
        assert folded(x, torch.rand(4, 3), nets).dtype == torch.bfloat16


def test_bad_input_is_refused():
    nets = make()
    with pytest.raises(UnknownNameError, match="stacked"):
        all_experts(torch.zeros(2, 5, dtype=torch.float64), nets, strategy="stakced")
    with pytest.raises(ArgumentError, match=r"\[N, D\]"):
        all_experts(torch.zeros(2, 2, 5, dtype=torch.float64), nets)
