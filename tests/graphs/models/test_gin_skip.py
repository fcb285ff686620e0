"""GIN-skip against its formula on a dense matrix."""

import pytest
import torch

from moeapps.graphs import GINSkip


@pytest.mark.parametrize(("width", "num_layers"), [(4, 1), (4, 2), (20, 3)])
def test_equals_the_formula_with_gradients(width, num_layers):
    torch.manual_seed(0)
    edges = torch.randint(8, (2, 20))
    x = torch.randn(10, width, dtype=torch.float64)
    adjacency = torch.zeros(10, 10, dtype=torch.float64)
    adjacency.index_put_((edges[1], edges[0]), torch.ones(20).double(), accumulate=True)
    model = GINSkip(width, 8, num_layers, 3, dropout=0.0).double()
    h = x
    for layer, (conv, norm) in enumerate(zip(model.convs, model.norms, strict=True)):
        inner = conv.conv.lin(h + adjacency @ h)
        for module in conv.conv.rest:
            inner = module(inner)
        h = inner + h @ conv.skip.weight.t()
        if layer < num_layers - 1:
            h = norm(h).relu()
    out = model(x, edges)
    torch.testing.assert_close(out, h)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(out.pow(2).sum(), parameters),
        torch.autograd.grad(h.pow(2).sum(), parameters),
    )


def test_skip_carries_a_node_without_neighbours():
    x, none = torch.randn(5, 4), torch.zeros(2, 0, dtype=torch.long)
    model = GINSkip(4, 8, 1, 3).eval()
    conv = model.convs[0]
    torch.testing.assert_close(model(x, none), conv.conv.lin(x) + conv.skip(x))
