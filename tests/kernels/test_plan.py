import pytest
import torch

from moeapps.kernels.autograd import gather_rows, touch
from moeapps.kernels.plan import combine_rows, gather, make_plan


@pytest.mark.parametrize("E", [1, 5, 254, 255, 300])
def test_plan_sorts_stably_whatever_the_key_dtype(E):
    g = torch.Generator().manual_seed(E)
    indices = torch.randint(-1, E, (101, 2), generator=g)
    plan = make_plan(indices, E)
    flat = torch.where(indices < 0, E, indices).flatten().tolist()
    assert plan.order.tolist() == sorted(range(202), key=lambda r: flat[r])
    assert plan.experts().tolist() == sorted(flat)
    assert plan.offsets.dtype == torch.int32
    assert plan.offsets.tolist() == [sum(f <= e for f in flat) for e in range(E)]


def test_inverse_undoes_the_order():
    plan = make_plan(torch.tensor([[2], [0], [-1], [1], [0]]), 3)
    assert plan.order[plan.inverse()].tolist() == list(range(5))


@pytest.mark.parametrize("K", [1, 3])
def test_gather_then_combine_multiplies_by_the_sum_of_weights(K):
    x, weights = torch.randn(6, 2, 3), torch.rand(6, K)
    plan = make_plan(torch.randint(0, 4, (6, K)), 4)
    y = combine_rows(gather(x, plan), plan, weights)
    torch.testing.assert_close(y, x * weights.sum(1).view(6, 1, 1))


def test_device_gather_has_the_gradient_of_index_select():
    plan = make_plan(torch.randint(-1, 4, (9, 3)), 4)
    x = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    rows, cotangent = plan.order // 3, torch.randn(27, 2, dtype=torch.float64)
    (want,) = torch.autograd.grad(x.index_select(0, rows), x, cotangent)
    (got,) = torch.autograd.grad(gather_rows(x, rows, plan.inverse(), 3), x, cotangent)
    torch.testing.assert_close(got, want)


def test_touch_gives_zero_gradients_even_for_infinite_weights():
    p, frozen = torch.full((3,), torch.inf, requires_grad=True), torch.ones(2)
    x = torch.ones(2, requires_grad=True)
    y = touch(x * 2, [p, frozen])
    y.sum().backward()
    assert torch.equal(p.grad, torch.zeros(3))
    assert torch.equal(x.grad, torch.full((2,), 2.0))
    assert frozen.grad is None
