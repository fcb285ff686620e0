"""Every strategy against the reference: outputs and all gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps import kernels
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.kernels import loop, reference
from moeapps.kernels.networks import Networks

FAST = ("loop", "grouped", "padded", "dense")
SPREADS = ("random", "skewed", "one_takes_all", "empty_experts", "nobody_sometimes")


def choices(spread: str, N: int, E: int, K: int, generator: torch.Generator) -> Tensor:
    """Distinct expert ids per row ``[N, K]`` in a given pattern."""
    scores = torch.rand(N, E, generator=generator)
    if spread == "skewed":
        scores = scores + torch.arange(E) / E
    elif spread == "one_takes_all":
        scores[:, E // 2] = 2
    elif spread == "empty_experts":
        scores[:, : E - K] -= 2
    indices = scores.topk(K, dim=1).indices
    if spread == "nobody_sometimes":
        indices = torch.where(torch.rand(N, K, generator=generator) < 0.4, -1, indices)
    return indices


def tensors(N, D, F1, out, E, K, *, dtype, spread="random", gated=False, bias=True, seed=0):
    g = torch.Generator().manual_seed(seed)

    def leaf(*shape, scale=1.0):
        value = scale * torch.randn(*shape, generator=g, dtype=torch.float64)
        return value.to(dtype).requires_grad_()

    indices = choices(spread, N, E, K, g)
    weights = torch.rand(N, K, generator=g, dtype=torch.float64)
    weights = torch.where(indices < 0, 0, weights)
    weights = weights.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    width = 2 * F1 if gated else F1
    leaves = {
        "x": leaf(N, D),
        "weights": weights,
        "w1": leaf(E, width, D, scale=D**-0.5),
        "b1": leaf(E, width) if bias else None,
        "w2": leaf(E, out, F1, scale=F1**-0.5),
        "b2": leaf(E, out) if bias else None,
    }
    return indices, leaves


def run(indices, leaves, strategy, **kwargs):
    """Output and the gradient of every leaf, through a fixed cotangent."""
    y = kernels.routed_mlp(
        leaves["x"],
        indices,
        leaves["weights"],
        leaves["w1"],
        leaves["b1"],
        leaves["w2"],
        leaves["b2"],
        strategy=strategy,
        **kwargs,
    )
    cotangent = torch.linspace(-1, 1, max(1, y.numel()), dtype=torch.float64)[: y.numel()]
    present = {k: v for k, v in leaves.items() if v is not None}
    grads = torch.autograd.grad((y * cotangent.view(y.shape).to(y.dtype)).sum(), present.values())
    return {"y": y.detach()} | dict(zip(present, grads, strict=True))


def assert_same(fast, slow, tolerance):
    assert fast.keys() == slow.keys()
    for name, want in slow.items():
        got = fast[name]
        assert got.shape == want.shape
        assert got.dtype == want.dtype, name
        if want.numel():
            error = (got - want).abs().max() / want.abs().max().clamp_min(1e-3)
            assert error <= tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("strategy", ["loop", "dense", "padded"])
def test_strategy_equals_reference_in_float64(strategy, spread):
    for K in range(1, 5):
        indices, leaves = tensors(33, 5, 7, 3, 4, K, dtype=torch.float64, spread=spread)
        slow = run(indices, leaves, "reference")
        assert_same(run(indices, leaves, strategy), slow, 1e-10)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("strategy", FAST)
def test_strategy_equals_reference_in_float32(strategy, spread):
    for K in (1, 2, 5):
        indices, leaves = tensors(40, 8, 12, 4, 5, K, dtype=torch.float32, spread=spread)
        slow = run(indices, leaves, "reference")
        assert_same(run(indices, leaves, strategy), slow, 1e-5)


@pytest.mark.parametrize("strategy", FAST)
def test_strategy_in_bfloat16_is_near_the_exact_result(strategy):
    indices, leaves = tensors(64, 16, 24, 8, 4, 2, dtype=torch.bfloat16)
    exact = {
        k: None if v is None else v.detach().double().requires_grad_() for k, v in leaves.items()
    }
    want = run(indices, exact, "reference")
    got = {k: v.double() for k, v in run(indices, leaves, strategy).items()}
    for name in want:
        error = (got[name] - want[name]).norm() / want[name].norm()
        assert error <= 1e-2, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("strategy", FAST)
@pytest.mark.parametrize("N", [0, 1, 7, 513])
def test_strategy_handles_any_number_of_rows(strategy, N):
    indices, leaves = tensors(N, 8, 12, 4, 6, 2, dtype=torch.float32, spread="nobody_sometimes")
    slow = run(indices, leaves, "reference")
    assert_same(run(indices, leaves, strategy), slow, 1e-5)


@pytest.mark.parametrize("strategy", ["loop", "dense", "padded"])
@pytest.mark.parametrize(("D", "F1", "out"), [(1, 1, 1), (3, 13, 5), (17, 9, 11)])
def test_strategy_handles_odd_widths(strategy, D, F1, out):
    indices, leaves = tensors(19, D, F1, out, 3, 2, dtype=torch.float64)
    slow = run(indices, leaves, "reference")
    assert_same(run(indices, leaves, strategy), slow, 1e-10)


@pytest.mark.parametrize("strategy", FAST)
@pytest.mark.parametrize("options", [{"gated": True}, {"bias": False}, {"act": F.relu}])
def test_strategy_handles_gated_units_no_bias_and_other_activations(strategy, options):
    build = {k: v for k, v in options.items() if k != "act"}
    call = {k: v for k, v in options.items() if k != "bias"}
    indices, leaves = tensors(21, 8, 12, 4, 4, 2, dtype=torch.float32, **build)
    slow = run(indices, leaves, "reference", **call)
    assert_same(run(indices, leaves, strategy, **call), slow, 1e-5)


@pytest.mark.parametrize("strategy", [*FAST, None])
def test_routed_linear_equals_explicit_sum(strategy):
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(9, 4, generator=g), torch.randn(3, 8, 4, generator=g)
    b, weights = torch.randn(3, 8, generator=g), torch.rand(9, 2, generator=g)
    indices = choices("random", 9, 3, 2, g)
    y = kernels.routed_linear(x, indices, weights, w, b, strategy=strategy)
    want = torch.stack(
        [
            sum(weights[n, k] * (w[i] @ x[n] + b[i]) for k, i in enumerate(indices[n]))
            for n in range(9)
        ]
    )
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("strategy", FAST)
def test_forward_without_gradient_equals_forward_with(strategy, spread):
    indices, leaves = tensors(40, 8, 12, 4, 5, 2, dtype=torch.float32, spread=spread)
    with torch.no_grad():
        y = kernels.routed_mlp(
            leaves["x"], indices, leaves["weights"], *list(leaves.values())[2:], strategy=strategy
        )
    torch.testing.assert_close(y, run(indices, leaves, strategy)["y"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", FAST)
def test_empty_expert_gets_an_exact_zero_gradient(strategy):
    indices, leaves = tensors(16, 8, 8, 8, 4, 1, dtype=torch.float32)
    indices = torch.where(indices == 2, 1, indices)
    grads = run(indices, leaves, strategy)
    for name in ("w1", "b1", "w2", "b2"):
        assert not grads[name][2].any(), name
        assert grads[name][1].any(), name


@pytest.mark.parametrize("strategy", FAST)
def test_nan_row_stays_alone(strategy):
    indices, leaves = tensors(12, 8, 8, 8, 4, 2, dtype=torch.float32, spread="nobody_sometimes")
    clean = run(indices, leaves, strategy)["y"]
    with torch.no_grad():
        leaves["x"][5] = torch.nan
    indices = indices.clone()
    indices[5] = torch.tensor([0, 1])
    y = run(indices, leaves, strategy)["y"]
    assert y[5].isnan().all()
    others = torch.arange(12) != 5
    torch.testing.assert_close(y[others], clean[others])


@pytest.mark.parametrize("strategy", FAST)
def test_rows_of_nobody_give_exact_zero_and_no_gradient(strategy):
    indices, leaves = tensors(64, 8, 8, 8, 3, 1, dtype=torch.float32)
    indices[::2] = -1
    with torch.no_grad():
        leaves["x"][::2] = 1e30  # would overflow if it were computed and multiplied by zero
        leaves["weights"][::2] = 0
    if strategy == "dense":  # computes every row; finite input is all it promises
        with torch.no_grad():
            leaves["x"][::2] = 7.0
    result = run(indices, leaves, strategy)
    assert not result["y"][::2].any()
    assert not result["x"][::2].any()
    # The reference never looks at such rows.
    assert_same(result, run(indices, leaves, "reference"), 1e-5)


@pytest.mark.parametrize("strategy", FAST)
def test_gradient_of_a_plain_sum_is_accepted(strategy):
    """``sum()`` makes an expanded gradient with zero strides, which grouped_mm alone refuses."""
    indices, leaves = tensors(16, 8, 8, 8, 4, 1, dtype=torch.float32)
    y = kernels.routed_mlp(
        leaves["x"], indices, torch.ones(16, 1), *list(leaves.values())[2:], strategy=strategy
    )
    y.sum().backward()
    assert leaves["w2"].grad is not None


@pytest.mark.parametrize("strategy", ["loop", "grouped", "padded"])
def test_sorted_rows_agree(strategy):
    _, leaves = tensors(16, 8, 8, 4, 3, 1, dtype=torch.float32)
    nets = Networks(leaves["w1"], leaves["b1"], leaves["w2"], leaves["b2"])
    ends = torch.tensor([4, 4, 13], dtype=torch.int32)
    y = kernels.sorted_rows(leaves["x"], ends, nets, strategy=strategy)
    want = torch.zeros(16, 4)
    want[:4] = nets.functions()[0](leaves["x"][:4])
    want[4:13] = nets.functions()[2](leaves["x"][4:13])
    torch.testing.assert_close(y, want, atol=1e-6, rtol=1e-5)


def test_dropout_acts_on_the_hidden_layer_and_keeps_the_mean():
    torch.manual_seed(0)
    indices, leaves = tensors(2000, 8, 16, 8, 2, 1, dtype=torch.float32)
    whole = run(indices, leaves, "loop")["y"]
    for strategy in FAST:
        dropped = run(indices, leaves, strategy, dropout=0.3)["y"]
        assert not torch.equal(dropped, whole)
        torch.testing.assert_close(dropped.mean(0), whole.mean(0), atol=0.1, rtol=0)


def test_capacity_is_enforced_not_silently_applied():
    indices, leaves = tensors(16, 4, 4, 4, 4, 1, dtype=torch.float32, spread="one_takes_all")
    with pytest.raises(ArgumentError, match="16 rows but capacity=4"):
        run(indices, leaves, "padded", capacity=4)
    fits = run(indices, leaves, "padded", capacity=20)
    assert_same(fits, run(indices, leaves, "reference"), 1e-5)


def test_loop_and_reference_take_any_callable_and_shape():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(10, 3, 4, generator=g)
    indices, weights = choices("nobody_sometimes", 10, 3, 2, g), torch.rand(10, 2, generator=g)
    functions = [lambda r: r.mean(1), lambda r: r.amax(1), lambda r: r[:, 0] ** 2]
    torch.testing.assert_close(
        loop.routed(x, indices, weights, functions),
        reference.routed(x, indices, weights, functions),
    )


@pytest.mark.parametrize("strategy", FAST)
def test_autocast_runs_the_products_in_its_dtype(strategy):
    indices, leaves = tensors(16, 8, 16, 8, 4, 2, dtype=torch.float32)
    seen = []

    def act(h):
        seen.append(h.dtype)
        return F.gelu(h)

    with torch.autocast("cpu", torch.bfloat16):
        result = run(indices, leaves, strategy, act=act)
    assert set(seen) == {torch.bfloat16}
    assert result["y"].dtype == torch.bfloat16
    assert result["w1"].dtype == torch.float32


def test_autocast_leaves_float64_alone():
    indices, leaves = tensors(6, 4, 4, 4, 2, 1, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(indices, leaves, "loop")["y"].dtype == torch.float64


def test_wrong_shapes_say_what_was_expected():
    x, w = torch.zeros(2, 3, 4), torch.zeros(2, 8, 4)
    with pytest.raises(ArgumentError, match=r"\[N, D\]"):
        kernels.routed_linear(x, torch.zeros(2, 1).long(), torch.zeros(2, 1), w)
    with pytest.raises(ArgumentError, match=r"w1 has shape \[2, 8, 4\], expected \[2, 8, 5\]"):
        kernels.routed_linear(torch.zeros(2, 5), torch.zeros(2, 1).long(), torch.zeros(2, 1), w)


def test_unknown_strategy_is_named():
    with pytest.raises(UnknownNameError, match="grouped"):
        kernels.routed_linear(
            torch.zeros(2, 4),
            torch.zeros(2, 1).long(),
            torch.zeros(2, 1),
            torch.zeros(2, 8, 4),
            strategy="groupde",
        )
