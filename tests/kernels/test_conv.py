import pytest
import torch

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.kernels import routed_conv2d


def make(B=6, E=3, K=1, C=2, out=4, k=3, groups=1, nobody=False):
    g = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    indices = torch.rand(B, E, generator=g).topk(K, 1).indices
    if nobody:
        indices[::2, 0] = -1
    return indices, [leaf(B, C, 5, 7), leaf(B, K), leaf(E, out, C // groups, k, k), leaf(E, out)]


@pytest.mark.parametrize(
    "case",
    [{}, {"K": 2}, {"K": 3, "nobody": True}, {"nobody": True}, {"B": 1}, {"E": 1}, {"groups": 2}],
    ids=str,
)
@pytest.mark.parametrize("shape", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}])
@pytest.mark.parametrize("strategy", ["loop", "gathered", None])
def test_strategy_equals_reference(strategy, shape, case):
    indices, (x, weights, w, b) = make(**case)
    shape = shape | {"groups": case.get("groups", 1)}
    y = routed_conv2d(x, indices, weights, w, b, strategy=strategy, **shape)
    want = routed_conv2d(x, indices, weights, w, b, strategy="reference", **shape)
    torch.testing.assert_close(y, want, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(y.pow(2).sum(), [x, weights, w, b]),
        torch.autograd.grad(want.pow(2).sum(), [x, weights, w, b]),
    )


def test_reference_equals_each_image_alone():
    indices, (x, weights, w, b) = make(K=2)
    y = routed_conv2d(x, indices, weights, w, b, strategy="reference")
    for n in range(6):
        alone = sum(
            weights[n, k] * torch.conv2d(x[n : n + 1], w[i], b[i]) for k, i in enumerate(indices[n])
        )
        torch.testing.assert_close(y[n : n + 1], alone)


def test_gathered_compiles_with_a_dynamic_batch():
    indices, (x, weights, w, b) = make(B=6, K=2, nobody=True)
    compiled = torch.compile(routed_conv2d, fullgraph=True, dynamic=True, backend="eager")
    for n in (6, 4):
        torch.testing.assert_close(
            compiled(x[:n], indices[:n], weights[:n], w, b),
            routed_conv2d(x[:n], indices[:n], weights[:n], w, b),
        )


def test_bad_input_is_refused():
    indices, (x, weights, w, b) = make()
    with pytest.raises(UnknownNameError, match="gathered"):
        routed_conv2d(x, indices, weights, w, b, strategy="gatherd")
    with pytest.raises(ArgumentError, match="per image"):
        routed_conv2d(x[0], indices, weights, w, b)
    with pytest.raises(ArgumentError, match="per image"):
        routed_conv2d(x, indices, weights, w, b, groups=2)
