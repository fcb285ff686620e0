"""The whole layer under compile, export, autocast, DDP, checkpointing and deterministic mode."""

import copy
import dataclasses
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.export import Dim
from torch.nn.parallel import DistributedDataParallel

from moeapps import kernels
from moeapps.gating import (
    Gate,
    Gaussian,
    Linear,
    Mlp,
    ModuleExperts,
    MoE,
    Routing,
    StackedFiLM,
    StackedLinear,
    StackedMLP,
    Tasks,
    capacity,
    expert_choice,
    record,
    softmax,
    topk,
    topp,
)

D, E, F = 8, 4, 16


class Capped(nn.Module):
    """A top-k selection with a capacity, as a select of one's own."""

    def __call__(self, logits, **options):
        return capacity(topk(logits, 2, **options), 1.5)

    reads_bias = False


def layers():
    experts = StackedMLP(E, D, F, D)
    return {
        "topk": MoE(Gate.topk(D, E, 2), experts),
        "topp": MoE(Gate(Linear(D, E), topp(0.5)), experts),
        "capacity": MoE(Gate(Linear(D, E), Capped()), experts),
        "null": MoE(Gate.topk(D, E, 3, null=E), experts),
        "dense": MoE(Gate.softmax(D, E), experts),
        "tasks": MoE(Gate(Tasks(D, E, 3), softmax), experts),
        "shared": MoE(Gate.topk(D, E, 1), experts, shared=Mlp(D, F)),
        "mean": MoE(Gate.topk(D, E, 2), experts, combine="mean"),
        "linear": MoE(Gate.topk(D, E, 2), StackedLinear(E, D, D)),
        "film": MoE(Gate.topk(D, E, 2), StackedFiLM(E, D)),
        "modules": MoE(Gate.topk(D, E, 1), ModuleExperts([Mlp(D, F) for _ in range(E)])),
    }


@pytest.fixture(params=list(layers()))
def layer(request):
    torch.manual_seed(0)
    return layers()[request.param]


def rows(N, seed=0):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["topk", "topp", "capacity", "null", "dense"])
def test_compiled_full_graph_equals_eager(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = layers()[name]
    # Gradients are traced for one of them; the others only have to be captured whole.
    backend = "aot_eager" if name == "topk" else "eager"
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for N in (9, 30):
        want = layer(rows(N))
        torch.testing.assert_close(compiled(rows(N)), want, atol=1e-5, rtol=1e-4)
    grads = torch.autograd.grad(want.pow(2).sum(), list(layer.parameters()), allow_unused=True)
    got = torch.autograd.grad(
        compiled(rows(N)).pow(2).sum(), list(layer.parameters()), allow_unused=True
    )
    torch.testing.assert_close(got, grads, atol=1e-4, rtol=1e-3)


def test_exported_with_dynamic_rows_equals_eager(layer):
    shapes = ({0: Dim("rows", min=2, max=4096)},)
    program = torch.export.export(layer.eval(), (rows(9),), dynamic_shapes=shapes)
    for N in (2, 31):
        torch.testing.assert_close(
            program.module()(rows(N, 1)), layer(rows(N, 1)), atol=1e-5, rtol=1e-4
        )


def test_routing_can_be_exported_as_an_output():
    class WithRouting(nn.Module):
        def __init__(self):
            super().__init__()
            self.moe = layers()["topk"]

        def forward(self, x):
            return self.moe(x, return_routing=True)

    program = torch.export.export(WithRouting(), (rows(9),))
    _, routing = program.module()(rows(9))
    assert isinstance(routing, Routing)
    assert routing.indices.shape == (9, 2)


@pytest.mark.parametrize("layout", ["token", "expert"])
def test_a_saved_program_gives_a_routing_again(layout, tmp_path):
    select = {"token": topk(2), "expert": expert_choice(capacity=2)}[layout]
    gate = Gate(Linear(D, E), select).eval()
    x = rows(12).unsqueeze(0) if layout == "expert" else rows(12)
    torch.export.save(torch.export.export(gate, (x,)), tmp_path / "gate.pt2")
    found, expected = torch.export.load(tmp_path / "gate.pt2").module()(x), gate(x)
    assert isinstance(found, Routing)
    for field in dataclasses.fields(Routing):
        ours, theirs = getattr(expected, field.name), getattr(found, field.name)
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(theirs, ours, msg=field.name)
        else:
            assert theirs == ours, field.name


@pytest.mark.parametrize("name", ["topk", "modules"])
def test_dense_export_holds_every_experts_weights(name):
    """Even where the example input reaches one expert only."""
    layer = layers()[name].eval()
    x = rows(1).expand(6, D).clone()
    with kernels.use("dense"):
        program = torch.export.export(layer, (x,))
    used = {
        program.graph_signature.inputs_to_parameters[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder"
        and node.name in program.graph_signature.inputs_to_parameters
        and node.users
    }
    assert used == {n for n, _ in layer.named_parameters()}
    assert "grouped" not in str(program.graph)
    torch.testing.assert_close(
        program.module()(rows(6, 1)), layer(rows(6, 1)), atol=1e-5, rtol=1e-4
    )


@pytest.mark.slow
def test_inductor_compiles_the_layer():
    for name in ("topk", "dense"):
        torch._dynamo.reset()
        layer = layers()[name]
        compiled = torch.compile(layer, fullgraph=True, dynamic=True)
        for N in (9, 30):
            torch.testing.assert_close(compiled(rows(N)), layer(rows(N)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["loop", "grouped", "padded", "dense"])
def test_autocast_gate_in_float32_experts_in_bfloat16(strategy):
    seen = []

    def act(h):
        seen.append(h.dtype)
        return h.relu()

    layer = MoE(Gate.topk(D, E, 2), StackedMLP(E, D, F, D, act))
    x = rows(20)
    with torch.autocast("cpu", torch.bfloat16), kernels.use(strategy):
        y, routing = layer(x, return_routing=True)
    assert routing.logits.dtype == routing.probs.dtype == routing.weights.dtype == torch.float32
    assert torch.equal(routing.indices, layer.gate(x).indices)
    assert set(seen) == {torch.bfloat16}
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.experts.w1.grad.dtype == torch.float32
    assert layer.gate.score.weight.grad.any()


def test_deterministic_mode_gives_the_same_bits_twice(layer):
    def once():
        model = copy.deepcopy(layer)
        y = model(rows(50))
        y.pow(2).sum().backward()
        return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = once(), once()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_noise_follows_the_generator():
    layer = MoE(Gate.topk(D, E, 1, perturb=Gaussian(5.0)), StackedMLP(E, D, F, D))

    def once(seed):
        return layer(rows(50), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


def test_gradients_accumulate_over_micro_batches():
    layer = layers()["topk"]
    x = rows(20)
    layer(x).sum().backward()
    whole = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    for part in x.split(7):
        layer(part).sum().backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["loop", "grouped", "padded", "dense"])
def test_function_transforms_give_the_same_gradient(strategy):
    layer = layers()["topk"]
    names, values = zip(*layer.named_parameters(), strict=True)

    def loss(values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, parameters, (rows(9),)).pow(2).sum()

    with kernels.use(strategy):
        got = torch.func.grad(loss)(values)
    want = torch.autograd.grad(loss(values), values)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


class Fixed(nn.Module):
    """A gate that sends every row to experts given beforehand; its scale can learn."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, cond):
        weights = self.scale * torch.ones_like(cond, dtype=x.dtype)
        return Routing(weights, E, cond, layout="token", probs=x.softmax(-1)[:, :E])


def _train_on_rank(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for kind in ("stacked", "modules"):
        torch.manual_seed(0)
        experts = StackedMLP(E, D, F, D)
        if kind == "modules":
            experts = ModuleExperts(experts.to_modules())
        model = DistributedDataParallel(MoE(Fixed(), experts))
        start = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            x = rows(6, seed=10 * step + rank)
            chosen = torch.full((6, 1), 2 * rank + step % 2)  # rank 0: experts 0, 1; rank 1: 2, 3
            with record(model) as rec:
                y = model(x, cond=chosen)
            loss = y.pow(2).mean() + rec.loss({"balance": 1e-2})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.save([p.detach() for p in model.parameters()], folder / f"{kind}{rank}.pt")
        assert not any(map(torch.equal, start, model.parameters()))
    dist.destroy_process_group()


def test_two_processes_with_disjoint_experts_stay_equal(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_train_on_rank, (port, tmp_path), nprocs=2)
    ends = {}
    for kind in ("stacked", "modules"):
        ends[kind], other = (torch.load(tmp_path / f"{kind}{rank}.pt") for rank in (0, 1))
        assert all(map(torch.equal, ends[kind], other)), kind
    # Both kinds of experts start alike, so they must end alike.
    for e in range(E):
        torch.testing.assert_close(ends["stacked"][1][e], ends["modules"][1 + 4 * e])
