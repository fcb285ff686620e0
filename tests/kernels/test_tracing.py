"""Compile and export of the routed kernels with a dynamic number of rows."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from moeapps import kernels
from moeapps.errors import ArgumentError

E, D, F = 4, 8, 16


class Routed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        for name, shape in {"w1": (E, F, D), "b1": (E, F), "w2": (E, D, F), "b2": (E, D)}.items():
            self.register_parameter(name, nn.Parameter(torch.randn(*shape, generator=g)))
        self.options = options

    def forward(self, x, indices, weights):
        return kernels.routed_mlp(
            x, indices, weights, self.w1, self.b1, self.w2, self.b2, **self.options
        )


def inputs(N, K=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    indices = torch.rand(N, E, generator=g).topk(K, 1).indices
    indices = torch.where(torch.rand(N, K, generator=g) < 0.3, -1, indices)
    return torch.randn(N, D, generator=g), indices, torch.rand(N, K, generator=g)


@pytest.mark.parametrize("strategy", [None, "dense", "grouped", "padded"])
def test_compiled_full_graph_equals_eager_in_values_and_gradients(strategy):
    eager = Routed(strategy="loop")
    module = Routed(strategy=strategy)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for N in (9, 5, 17):
        want, got = eager(*inputs(N)), compiled(*inputs(N))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        for a, b in zip(
            torch.autograd.grad(got.pow(2).sum(), list(module.parameters())),
            torch.autograd.grad(want.pow(2).sum(), list(eager.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("strategy", [None, "dense", "grouped"])
def test_exported_with_a_named_dimension_equals_eager_at_another_size(strategy):
    rows = Dim("rows", min=1, max=4096)
    module = Routed(strategy=strategy)
    program = torch.export.export(module, inputs(9), dynamic_shapes=[{0: rows}] * 3)
    for N in (2, 31):
        torch.testing.assert_close(
            program.module()(*inputs(N, seed=1)),
            Routed(strategy="loop")(*inputs(N, seed=1)),
            atol=1e-4,
            rtol=1e-4,
        )


def test_padded_exports_with_an_integer_capacity():
    module = Routed(strategy="padded", capacity=64)
    shapes = [{0: Dim.AUTO}] * 3
    program = torch.export.export(module, inputs(9), dynamic_shapes=shapes)
    torch.testing.assert_close(
        program.module()(*inputs(31, seed=1)),
        Routed(strategy="loop")(*inputs(31, seed=1)),
        atol=1e-4,
        rtol=1e-4,
    )


def test_default_when_exported_is_the_grouped_product():
    program = torch.export.export(Routed(), inputs(9))
    assert "grouped_linear" in str(program.graph)


def test_exported_dense_graph_reads_every_expert_even_if_the_example_used_one():
    x, indices, weights = inputs(6)
    with kernels.use("dense"):
        program = torch.export.export(Routed(), (x, torch.zeros_like(indices), weights))
    assert "grouped" not in str(program.graph)
    torch.testing.assert_close(
        program.module()(x, indices, weights),
        Routed(strategy="loop")(x, indices, weights),
        atol=1e-4,
        rtol=1e-4,
    )


def test_asking_for_the_loop_in_a_graph_is_an_error():
    with pytest.raises((ArgumentError, RuntimeError), match="on the host"):
        torch.export.export(Routed(strategy="loop"), inputs(9))


def test_padded_in_a_graph_does_not_drop_rows_silently():
    x, indices, weights = inputs(32)
    module = torch.compile(
        Routed(strategy="padded", capacity=2), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(RuntimeError, match="capacity"):
        module(x, torch.zeros_like(indices[:, :1]), weights[:, :1])
