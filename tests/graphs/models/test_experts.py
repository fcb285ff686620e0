"""The node networks against PyTorch Geometric, dense matrices, and each other's input forms."""

import copy
import gc
import json

import pytest
import torch
import torch_geometric.nn as pyg
from torch.export import Dim, export
from torch_geometric import EdgeIndex

from moeapps import create_model, model_info
from moeapps.errors import ArgumentError
from moeapps.graphs import gat, gcn, gin, graphsage, mlp, propagation

STRONG = ["gcn", "graphsage", "gat", "gin", "gin_skip", "h2gcn"]


def random_graph(seed=0, num_nodes=14, num_edges=40):
    g = torch.Generator().manual_seed(seed)
    edges = torch.randint(num_nodes - 2, (2, num_edges), generator=g)
    edges = torch.unique(torch.cat([edges, edges[:, :9].flip(0)], 1), dim=1).contiguous()
    return torch.randn(num_nodes, 8, generator=g), edges


def build(name, **arguments):
    torch.manual_seed(0)
    model = create_model(name, **{**model_info(name).example, **arguments})
    return model.eval()


def assert_same_outputs_and_gradients(ours, theirs, x, edges):
    out, expected = ours(x, edges), theirs(x, edges)
    torch.testing.assert_close(out, expected)
    out.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    theirs_grad = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs_grad[name])


@pytest.mark.parametrize(("width", "hidden"), [(8, 16), (8, 4), (8, 8)])
@pytest.mark.parametrize(("build_ours", "network"), [(gcn, pyg.GCN), (graphsage, pyg.GraphSAGE)])
def test_equals_pyg_with_the_same_weights(build_ours, network, width, hidden):
    x, edges = random_graph()
    ours = build_ours(width, hidden, 3, 4, dropout=0.0).double()
    theirs = network(width, hidden, 3, 4, norm="batch").double()
    theirs.load_state_dict(ours.state_dict())
    assert_same_outputs_and_gradients(ours, theirs, x.double(), edges)


def test_gat_equals_pyg_with_the_same_weights():
    x, edges = random_graph()
    ours = gat(8, 16, 2, 4, heads=4, dropout=0.0).double()
    theirs = pyg.GAT(8, 16, 2, 4, heads=4, norm="batch", act="elu").double()
    theirs.convs[1] = pyg.GATConv(16, 4, heads=1, concat=False).double()
    theirs.load_state_dict(ours.state_dict())
    assert_same_outputs_and_gradients(ours, theirs, x.double(), edges)


def test_mlp_equals_pyg_with_the_same_weights():
    x, _ = random_graph()
    ours = mlp(8, 16, 3, 4, dropout=0.0)
    theirs = pyg.MLP([8, 16, 16, 4], dropout=0.0, norm="batch_norm")
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("width", [4, 20])
def test_gin_layer_is_its_formula(num_layers, width):
    x, edges = torch.randn(6, width).double(), torch.tensor([[0, 1, 1, 5], [1, 0, 2, 5]])
    model = gin(width, 8, num_layers, 3).double().eval()
    adjacency = torch.zeros(6, 6).double()
    adjacency[edges[1], edges[0]] = 1
    h = x
    for layer, (conv, norm) in enumerate(zip(model.convs, model.norms, strict=True)):
        h = conv.lin(h + adjacency @ h)
        for module in conv.rest:
            h = module(h)
        if layer < num_layers - 1:
            h = norm(h).relu()
    torch.testing.assert_close(model(x, edges), h)
    linears = sum("lin" in name and name.endswith("weight") for name, _ in model.named_parameters())
    assert linears == num_layers**2


@pytest.mark.parametrize("name", STRONG)
def test_input_forms_and_sparse_features_agree(name):
    x, edges = random_graph()
    x = x * (x > 0.5)
    model = build(name)
    plain = model(x, edges)
    size = (len(x), len(x))
    adjacency = torch.sparse_coo_tensor(edges.flip(0), torch.ones(edges.size(1)), size)
    forms = [EdgeIndex(edges, sparse_size=size), adjacency.coalesce().to_sparse_csr()]
    for form in forms:
        torch.testing.assert_close(model(x, form), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(x.to_sparse_csr(), edges), plain, rtol=0, atol=1e-5)


def test_mlp_takes_sparse_features_with_equal_gradients():
    x, _ = random_graph()
    x = x * (x > 0.5)
    model = mlp(8, 16, 2, 3, dropout=0.0)
    grads = []
    for features in (x, x.to_sparse_csr()):
        model.zero_grad()
        model(features).pow(2).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", STRONG)
def test_relabelled_nodes_permute_the_output(name):
    x, edges = random_graph()
    model = build(name).double()
    order = torch.randperm(len(x))
    number = order.argsort()
    torch.testing.assert_close(
        model(x[order].double(), number[edges]), model(x.double(), edges)[order]
    )


@pytest.mark.parametrize("name", STRONG)
def test_two_graphs_in_a_row_do_not_mix(name):
    model = build(name)
    graphs = [random_graph(seed) for seed in (1, 2)]
    first = [model(*graph) for graph in graphs]
    again = [model(*graph) for graph in reversed(graphs)]
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[1], again[0])
    assert not torch.allclose(first[0], first[1])


@pytest.mark.parametrize("name", STRONG)
def test_runs_without_edges_and_trains_every_parameter(name):
    x, edges = random_graph()
    model = build(name)
    assert torch.isfinite(model(x, edges[:, :0])).all()
    model.train()
    model(x, edges).pow(2).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", STRONG)
def test_exports_with_free_numbers_of_nodes_and_edges(name):
    gc.collect()
    before = len(propagation._CACHE)
    model = build(name)
    x, edges = random_graph()
    program = export(model, (x, edges), dynamic_shapes=({0: Dim("V")}, {1: Dim("M")}))
    other_x, other_edges = random_graph(5, num_nodes=23, num_edges=70)
    assert len(propagation._CACHE) == before
    torch.testing.assert_close(
        program.module()(other_x, other_edges), model(other_x, other_edges), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ["mlp", *STRONG])
def test_builds_from_plain_arguments_copies_and_resets(name):
    example = model_info(name).example
    assert json.loads(json.dumps(example)) == example
    model = build(name)
    x, edges = random_graph()
    inputs = (x,) if name == "mlp" else (x, edges)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(*inputs), model(*inputs))
    model.reset_parameters()
    assert not torch.equal(copied(*inputs), model(*inputs))


@pytest.mark.parametrize("name", STRONG)
def test_bfloat16_autocast_stays_close(name):
    x, edges = random_graph()
    model = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, edges)
    torch.testing.assert_close(half.float(), model(x, edges), rtol=0.1, atol=0.1)


def test_gcn_uses_edge_weights_and_others_refuse_them():
    x, edges = random_graph()
    weight = torch.rand(edges.size(1))
    ours, theirs = build("gcn"), pyg.GCN(8, 16, 2, 3, norm="batch").eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x, edges, weight), theirs(x, edges, weight))
    for name in STRONG[1:]:
        with pytest.raises(ArgumentError, match="no use for it"):
            build(name)(x, edges, weight)


def test_one_training_node_is_refused_clearly():
    x, edges = torch.randn(1, 8), torch.zeros(2, 0, dtype=torch.long)
    for model in (gcn(8, 16, 2, 3), mlp(8, 16, 2, 3)):
        with pytest.raises(ArgumentError, match="at least two"):
            model(x) if isinstance(model, pyg.MLP) else model(x, edges)
        model.eval()
        model(x) if isinstance(model, pyg.MLP) else model(x, edges)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_layers": 0}, "num_layers=0"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"out_channels": 0}, "out_channels=0"),
    ],
)
@pytest.mark.parametrize("name", ["mlp", *STRONG])
def test_impossible_sizes_are_refused(name, arguments, text):
    with pytest.raises(ArgumentError, match=text):
        build(name, **arguments)


def test_heads_must_divide_the_width():
    with pytest.raises(ArgumentError, match="heads=3"):
        gat(8, 16, 2, 3, heads=3)


def test_last_gat_layer_has_one_head():
    model = gat(8, 16, 2, 3, heads=4)
    assert [conv.heads for conv in model.convs] == [4, 1]


@pytest.mark.parametrize("name", ["mlp", "gcn", "gat", "gin_skip"])
def test_evaluation_without_gradient_equals_evaluation_with_it_and_spares_the_input(name):
    x, edges = random_graph()
    model = build(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    inputs = (x,) if name == "mlp" else (x, edges)
    before = x.clone()
    expected = model(*inputs)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), expected.detach())
    assert torch.equal(x, before)
