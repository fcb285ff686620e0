"""The checks accept what is right and refuse each kind of wrong."""

import sys
import types

import pytest
import torch
from torch import nn

from moeapps import gating
from moeapps.errors import UnknownNameError
from moeapps.gating import (
    BalanceBias,
    Confidence,
    Conv,
    Gate,
    Gaussian,
    Linear,
    MoE,
    Routing,
    StackedLinear,
    StackedMLP,
    topk,
    topp,
)
from moeapps.registry import ModelEntry
from moeapps.testing import (
    MODEL_CHECKS,
    check_gate,
    check_model,
    check_moe_layer,
    example_inputs,
)
from moeapps.testing.models import Subject

GATES = {
    "topk": (lambda: Gate.topk(8, 4, 2), (5, 8)),
    "top1": (lambda: Gate.topk(8, 4, 1), (2, 3, 8)),
    "sigmoid with bias": (
        lambda: Gate(Linear(8, 4), topk(2, score="sigmoid"), balance=BalanceBias(4)),
        (5, 8),
    ),
    "noisy": (lambda: Gate(Linear(8, 4), topk(2), perturb=Gaussian(0.1)), (5, 8)),
    "null": (lambda: Gate.topk(8, 4, 3, null=4), (5, 8)),
    "topp": (lambda: Gate(Linear(8, 4), topp(0.5)), (5, 8)),
    "softmax": (lambda: Gate.softmax(8, 4), (5, 8)),
    "tasks": (lambda: Gate.softmax(8, 4, tasks=3), (5, 8)),
    "pixel": (lambda: Gate.pixel(8, 3), (2, 8, 4, 4)),
    "wide pixel": (lambda: Gate(Conv(8, 3, kernel_size=3), gating.softmax), (2, 8, 4, 4)),
    "expert choice": (lambda: Gate.expert_choice(8, 4), (2, 6, 8)),
    "slots": (lambda: Gate.soft(8, 4, 2), (2, 6, 8)),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_pass(name):
    build, shape = GATES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    gate = build().eval()
    check_gate(gate, x)
    assert not gate.training


def test_a_confidence_gate_passes():
    check_gate(Gate(Confidence(nn.Linear(8, 1)), gating.softmax), torch.randn(5, 8))


class Forgetful(Gate):
    """Ignores padding."""

    def forward(self, x, *, valid=None, **inputs):
        return super().forward(x, **inputs)


class Moody(Gate):
    """Noise in eval mode."""

    def forward(self, x, **inputs):
        return super().forward(x + torch.randn_like(x), **inputs)


class Deaf(Gate):
    """Cuts the gradient."""

    def forward(self, x, **inputs):
        return super().forward(x, **inputs).detach()


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Forgetful, "padding"), (Moody, "eval mode differ"), (Deaf, "no gradient|does not require")],
)
def test_broken_gates_are_refused(kind, message):
    with pytest.raises((AssertionError, RuntimeError), match=message):
        check_gate(kind(Linear(8, 4), gating.softmax), torch.randn(5, 8))


LAYERS = {
    "topk": (lambda: MoE(Gate.topk(8, 4, 2), StackedMLP(4, 8, 16, 8)), (5, 8)),
    "shared": (
        lambda: MoE(Gate.topk(8, 4, 1), StackedMLP(4, 8, 16, 8), shared=nn.Linear(8, 8)),
        (2, 3, 8),
    ),
    "tasks": (lambda: MoE(Gate.softmax(8, 4, tasks=3), StackedMLP(4, 8, 16, 8)), (5, 8)),
    "linear experts": (lambda: MoE(Gate.topk(8, 4, 2), StackedLinear(4, 8, 8)), (5, 8)),
    "expert choice": (lambda: MoE(Gate.expert_choice(8, 4), StackedMLP(4, 8, 16, 8)), (2, 6, 8)),
    "slots": (lambda: MoE(Gate.soft(8, 4, 2), StackedMLP(4, 8, 16, 8)), (2, 6, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_pass(name):
    build, shape = LAYERS[name]
    check_moe_layer(build(), torch.randn(shape))


class Hoarder(MoE):
    """Keeps the routing on the module, with its graph."""

    def forward(self, x, *args, **inputs):
        self.last = self.gate(x)
        return super().forward(x, *args, **inputs)


class Silent(MoE):
    """Does not report its routing."""

    def forward(self, x, *args, return_routing=False, **inputs):
        routing = self.gate(x)
        y = self.experts(x, routing)
        return (y, routing) if return_routing else y


@pytest.mark.parametrize(
    ("kind", "message"), [(Hoarder, "last keeps a tensor"), (Silent, "does not see the layer")]
)
def test_broken_layers_are_refused(kind, message):
    layer = kind(Gate.topk(8, 4, 2), StackedMLP(4, 8, 16, 8))
    with pytest.raises(AssertionError, match=message):
        check_moe_layer(layer, torch.randn(5, 8))


class Node(nn.Module):
    """A right model; each subclass is wrong in one way."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.first = nn.Linear(in_channels, 16)
        self.last = nn.Linear(16, out_channels)

    def forward(self, x):
        return self.last(self.first(x).relu())


class RandomWeights(Node):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        generator = torch.Generator()
        generator.seed()
        nn.init.normal_(self.last.weight, generator=generator)


class Transposed(Node):
    def forward(self, x):
        return super().forward(x).T


class UnusedParameter(Node):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.unused = nn.Parameter(torch.zeros(2))


class SilentMixture(Node):
    pass


class WrongRouting(Node):
    def forward(self, x):
        weights = torch.ones(len(x), 2)
        indices = torch.zeros(len(x), 2, dtype=torch.int64)  # the same expert twice
        gating.report_routing(self, Routing(weights, 2, indices, layout="token"))
        return super().forward(x)


class AlwaysDropout(Node):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, training=True)


class HiddenState(Node):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.scale = torch.rand(()) + 0.5

    def forward(self, x):
        return super().forward(x) * self.scale


class Unpicklable(Node):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.activation = lambda x: x.relu()


class Stubborn(Node):
    def forward(self, x):
        return super().forward(x.mean(0, keepdim=True)).expand(len(x), -1)


class Branching(Node):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else 2 * y


class Overflowing(Node):
    """Differences of large numbers: bfloat16 loses them all."""

    def forward(self, x):
        large = nn.functional.linear(x, 1e4 + self.first.weight) - 1e4 * x.sum(-1, keepdim=True)
        return self.last(large.relu())


BROKEN = {
    RandomWeights: ("builds", "different initial weights"),
    Transposed: ("shapes", r"output \[3, 2\], expected \[2, 3\]"),
    UnusedParameter: ("gradients", "unused gets no gradient"),
    SilentMixture: ("routings", "reports no routing"),
    WrongRouting: ("routings", "chosen twice"),
    AlwaysDropout: ("eval", "calls in eval mode differ"),
    HiddenState: ("state_dict", "output differs"),
    Unpicklable: ("copies", "pickle"),
    Stubborn: ("overfits", "accuracy"),
    Branching: ("export", "data-dependent"),
    Overflowing: ("bfloat16", "bfloat16 output is"),
}


@pytest.fixture
def entry(monkeypatch):
    module = types.ModuleType("models_under_test")
    monkeypatch.setitem(sys.modules, "models_under_test", module)

    def make(kind, **fields):
        setattr(module, kind.__name__, kind)
        example = {"in_channels": 8, "out_channels": 3}
        return ModelEntry(
            "graphs", f"models_under_test:{kind.__name__}", "node classification", "-", "-",
            example, **fields,
        )  # fmt: skip

    return make


def test_a_right_model_passes_every_check(entry):
    assert check_model(entry(Node)) == {}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_each_defect_is_found_by_its_check(kind, entry):
    check, message = BROKEN[kind]
    tags = ("mixture",) if kind is SilentMixture else ()
    with pytest.raises(Exception, match=message):
        MODEL_CHECKS[check](Subject(entry(kind, tags=tags)))


def test_every_check_has_a_defect_that_it_finds():
    assert {check for check, _ in BROKEN.values()} == set(MODEL_CHECKS)


def test_message_names_model_and_check(entry):
    with pytest.raises(
        AssertionError, match="models_under_test:UnusedParameter, gradients: unused"
    ):
        check_model(entry(UnusedParameter))


def test_declared_limits_are_left_out_and_returned(entry):
    reason = {"gradients": "one parameter is for later"}
    assert check_model(entry(UnusedParameter, cannot=reason)) == reason


def test_arguments_that_json_changes_are_refused(entry):
    wrong = entry(Node)
    wrong.example["in_channels"] = (8,)
    with pytest.raises(AssertionError, match="JSON"):
        MODEL_CHECKS["builds"](Subject(wrong))


def test_an_unknown_task_has_no_example():
    with pytest.raises(UnknownNameError, match="node classification"):
        example_inputs(ModelEntry("graphs", "a:b", "node clasification", "-", "-"))


def test_example_graph_is_undirected_with_an_isolated_node(entry):
    inputs = example_inputs(entry(Node)).inputs
    edges = {tuple(edge) for edge in inputs["edge_index"].T.tolist()}
    assert edges == {(target, source) for source, target in edges}
    assert len(inputs["x"]) - 1 not in inputs["edge_index"]
