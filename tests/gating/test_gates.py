import copy
import io
import pickle

import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError, GateError
from moeapps.gating.balance import BalanceBias
from moeapps.gating.gates import Gate
from moeapps.gating.perturbations import Gaussian
from moeapps.gating.routing import Routing
from moeapps.gating.scores import Confidence, Constant, Conv, Hash, Linear, PooledLinear, Tasks
from moeapps.gating.selections import capacity, expert_choice, hard, random, softmax, topk, topp
from moeapps.gating.similarity_scores import Prototype, Recurrent, SimilarityAware

D, E = 8, 4

ROW_GATES = {
    "dense": lambda: Gate.softmax(D, E),
    "tasks": lambda: Gate.softmax(D, E, tasks=3),
    "topk": lambda: Gate.topk(D, E, 2),
    "topk_sorted": lambda: Gate.topk(D, E, 3),
    "null": lambda: Gate.topk(D, E, 3, null=4),
    "topp": lambda: Gate(Linear(D, E), topp(0.5)),
    "capacity": lambda: Gate(Linear(D, E), capacity(topk(2), 1.25)),
    "capacity_prob": lambda: Gate(Linear(D, E), capacity(topk(2), 1.25, policy="prob")),
    "hard": lambda: Gate(Linear(D, E), hard),
    "balanced": lambda: Gate(Linear(D, E), topk(2, score="sigmoid"), balance=BalanceBias(E)),
}
GROUP_GATES = {
    "expert_choice": lambda: Gate.expert_choice(D, E),
    "soft": lambda: Gate.soft(D, E, 2),
}
ALL_GATES = ROW_GATES | GROUP_GATES


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def same(a: Routing, b: Routing):
    torch.testing.assert_close(a.weights, b.weights)
    assert (a.indices is None) == (b.indices is None)
    assert a.indices is None or torch.equal(a.indices, b.indices)
    assert a.layout == b.layout


@pytest.mark.parametrize("name", ALL_GATES)
def test_routings_hold_every_invariant_with_padding(name):
    gate = ALL_GATES[name]()
    valid = torch.rand(3, 9) < 0.7
    routing = gate(torch.randn(3, 9, D), valid=valid).check()
    assert routing.weights.dtype == torch.float32
    assert torch.equal(routing.valid, valid)
    dense = routing.dense()
    assert not dense[~valid].any()


@pytest.mark.parametrize("name", ALL_GATES)
def test_padding_changes_nothing_for_the_rest_and_its_nan_reaches_no_gradient(name):
    gate = ALL_GATES[name]()
    x = torch.randn(1, 8, D)
    valid = torch.tensor([[True] * 8 + [False] * 4])
    padded = torch.cat([x, torch.full((1, 4, D), float("nan"))], 1)
    routing = gate(padded, valid=valid).check()
    if "capacity" not in name and "choice" not in name:  # their C counts padding rows
        torch.testing.assert_close(routing.dense()[:, :8], gate(x).dense())
    routing.weights.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in gate.parameters())


@pytest.mark.parametrize("name", ROW_GATES)
def test_a_nan_row_stays_alone(name):
    gate = ROW_GATES[name]().eval()
    if name == "capacity":
        gate.select = capacity(topk(2), size=9)
    x = torch.randn(9, D)
    clean = gate(x)
    x[4] = float("nan")
    routing = gate(x).check()
    rest = [n for n in range(9) if n != 4]
    if name != "capacity_prob":  # there the place of the NaN row goes to the others
        torch.testing.assert_close(routing.dense()[rest], clean.dense()[rest])
    assert routing.dense()[rest].isfinite().all()
    assert not routing.counted_rows()[4].any()


def test_nan_can_be_refused():
    gate = Gate(Linear(D, E), topk(2), on_nan="raise")
    x = torch.randn(9, D)
    gate(x)
    x[4, 0] = float("inf")
    x[5, 0] = float("nan")
    with pytest.raises(GateError, match="2 row"):
        gate(x)
    gate(x, valid=torch.tensor([True] * 4 + [False] * 2 + [True] * 3))


@pytest.mark.parametrize("name", [n for n in ALL_GATES if n != "hard"])
def test_gates_pass_gradcheck(name):
    gate = ALL_GATES[name]().double()
    x = torch.randn(2, 5, D, dtype=torch.float64, requires_grad=True)
    routing = gate(x)
    assert routing.weights.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: gate(x).weights, x)
    assert torch.autograd.gradcheck(lambda x: gate(x).probs, x)


@pytest.mark.parametrize("name", ALL_GATES)
def test_permuting_rows_permutes_the_decisions(name):
    gate = ALL_GATES[name]()
    if name.startswith("capacity"):
        gate.select = topk(2)  # position is what a capacity is about
    x, order = torch.randn(1, 9, D), torch.randperm(9)
    torch.testing.assert_close(gate(x[:, order]).dense(), gate(x).dense()[:, order])


def test_clean_logits_are_stored_before_temperature_and_mask():
    mask = torch.tensor([True, True, False, True])
    gate = Gate(Linear(D, E), softmax, temperature=2.0, mask=mask)
    x = torch.randn(5, D)
    routing = gate(x).check()
    logits = gate.score(x)
    torch.testing.assert_close(routing.logits, logits)
    torch.testing.assert_close(
        routing.weights, (logits / 2).masked_fill(~mask, -torch.inf).softmax(-1)
    )


def test_temperature_can_be_assigned_and_is_saved():
    gate = Gate.softmax(D, E)
    x = torch.randn(5, D)
    gate.temperature = 0.1
    torch.testing.assert_close(gate(x).weights, (gate.score(x) / 0.1).softmax(-1))
    other = Gate.softmax(D, E)
    other.load_state_dict(gate.state_dict())
    assert float(other.temperature) == pytest.approx(0.1)


def test_valid_reaches_custom_selections_that_ignore_it():
    def first(logits, *, bias=None, valid=None, generator=None):
        indices = torch.zeros(*logits.shape[:-1], 1, dtype=torch.int64)
        return Routing(torch.ones_like(logits[..., :1]), logits.shape[-1], indices, layout="token")

    gate = Gate(Linear(D, E), first)
    routing = gate(torch.randn(2, D), valid=torch.tensor([True, False])).check()
    assert routing.indices.tolist() == [[0], [-1]]


def test_state_travels_through_extra():
    first, second = Recurrent(D, E), None
    second = Gate(Recurrent(D, E, cell=first.cell), topk(1))
    before = Gate(first, topk(1))(torch.randn(5, D))
    after = second(torch.randn(5, D), state=before.extra["state"]).check()
    assert after.extra["state"].shape == (5, 128)


def test_cond_reaches_the_score_and_is_refused_elsewhere():
    gate = Gate(Hash(E), topk(1, score="identity"))
    routing = gate(torch.randn(4, D), cond=torch.arange(4)).check()
    assert (routing.weights == 1).all()
    assert routing.indices[:, 0].tolist() == [(i * 2654435761) % 2**32 % E for i in range(4)]
    assert torch.equal(gate(torch.arange(4)).indices, routing.indices)  # ids as the input itself
    with pytest.raises(GateError, match="Linear does not take"):
        Gate.topk(D, E, 2)(torch.randn(4, D), cond=torch.arange(4))


def test_padding_reaches_scores_that_mix_rows():
    gate = Gate(SimilarityAware(Linear(D, E), D), softmax)
    x = torch.randn(1, 5, D)
    valid = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(gate(x, valid=valid).weights[:, :3], gate(x[:, :3]).weights)


def test_pixel_gates_take_padding_per_pixel():
    gate = Gate.pixel(D, E, kernel_size=3)
    x = torch.randn(2, D, D, D)  # as many channels as pixels a side: no shape gives it away
    x[:, :, -1] = float("nan")
    valid = torch.ones(2, D, D, dtype=torch.bool)
    valid[:, -1] = False
    routing = gate(x, valid=valid).check()
    assert routing.weights.isfinite().all()
    assert not routing.weights[:, -1].any()


@pytest.mark.parametrize(
    ("gate", "x", "shape"),
    [
        (Gate.softmax(D, E, tasks=3), torch.zeros(5, D), (5, 3, E)),
        (Gate.pixel(D, E), torch.zeros(2, D, 3, 3), (2, 3, 3, E)),
        (Gate(Conv(D, (3, 2)), softmax), torch.zeros(2, D, 3, 3), (2, 3, 3, 3, 2)),
        (Gate(PooledLinear(D, E), hard), torch.zeros(2, D, 3, 3), (2, 1)),
        (Gate(Confidence(), softmax), torch.zeros(5), (5, 2)),
        (Gate(Constant(E), softmax), torch.zeros(5, D), (5, E)),
        (Gate(Constant(E), random(2)), torch.zeros(5, D), (5, 2)),
        (Gate(Prototype(D, E), topk(2, score="identity")), torch.zeros(5, D), (5, 2)),
        (Gate.expert_choice(D, E, capacity=1), torch.zeros(2, 10, D), (2, E, 3)),
        (Gate.soft(D, E, num_rows=12), torch.zeros(2, 12, D), (2, 12, E, 3)),
    ],
)
def test_shapes_of_the_systems(gate, x, shape):
    assert gate(x).check().weights.shape == shape


def test_soft_gate_needs_a_number_of_slots():
    with pytest.raises(ArgumentError, match="slots"):
        Gate.soft(D, E)


def zero(module):
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    return module


def test_zero_scores_are_refused_where_experts_are_ranked():
    with pytest.raises(ArgumentError, match="starts at zero"):
        Gate(zero(Linear(D, E)), topk(2))
    with pytest.raises(ArgumentError, match="starts at zero"):
        Gate(nn.Sequential(nn.Linear(D, D), zero(nn.Linear(D, E))), capacity(topp(0.5), 1.0))
    with pytest.raises(ArgumentError, match="starts at zero"):
        Gate(Constant(E), hard)
    Gate(zero(Linear(D, E)), softmax)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"mask": torch.ones(E)},
        {"on_nan": "ignore"},
        {"balance": BalanceBias(E)},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ArgumentError):
        Gate(Linear(D, E), softmax, **options)


def test_wrong_input_width_is_named():
    with pytest.raises(GateError, match=r"expected \[..., 8\]"):
        Gate.topk(D, E, 2)(torch.zeros(5, D + 1))


class Watching(Linear):
    """Checks in what precision it is called."""

    def forward(self, x):
        assert x.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        logits = super().forward(x)
        assert logits.dtype == torch.float32
        return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gates_decide_in_float32_under_autocast(dtype):
    gate = Gate(Watching(D, E), topk(2))
    x = torch.randn(5, D).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = gate(x).check()
        assert torch.is_autocast_enabled("cpu")
    same(routing, gate(x.float()))


def test_gates_stay_float32_in_a_half_precision_model():
    model = nn.Sequential(nn.Linear(D, D), Gate(Watching(D, E), topk(2)))
    weight = model[1].score.weight.clone()
    model.to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[1].score.weight, weight)
    model(torch.randn(5, D).bfloat16()).check()
    assert model.double()[1].score.weight.dtype == torch.float64


@pytest.mark.parametrize("name", ALL_GATES)
def test_gates_survive_deepcopy_pickle_and_checkpoints(name):
    gate = ALL_GATES[name]()
    x = torch.randn(2, 9, D)
    gate(x)
    same(copy.deepcopy(gate).eval()(x), gate.eval()(x))
    same(pickle.loads(pickle.dumps(gate))(x), gate(x))
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    other = ALL_GATES[name]().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    same(other(x), gate(x))


@pytest.mark.parametrize("name", ALL_GATES)
def test_deterministic_mode_repeats_bit_for_bit(name):
    gate = ALL_GATES[name]()
    gate.perturb = Gaussian()
    x = torch.randn(2, 50, D)

    def run():
        gate.zero_grad()
        routing = gate(x, generator=torch.Generator().manual_seed(1))
        routing.dense().square().sum().backward()
        return routing.dense().detach(), [p.grad.clone() for p in gate.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        (first, grads), (second, again) = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


COMPILED = ["dense", "tasks", "topk", "topk_sorted", "null", "topp", "capacity_prob", "balanced"]


@pytest.mark.parametrize("name", COMPILED)
def test_gates_compile_in_one_graph_for_every_number_of_rows(name):
    torch._dynamo.reset()
    gate = ROW_GATES[name]()
    compiled = torch.compile(gate, fullgraph=True, dynamic=True, backend="eager")
    for rows in (8, 13, 40):
        x = torch.randn(rows, D)
        same(compiled(x), gate(x))
    if gate.balance is not None:
        assert gate.balance.seen.sum() == (8 + 13 + 40) * 2 * 2


def test_gradients_and_counters_pass_compilation():
    torch._dynamo.reset()
    gate = ROW_GATES["balanced"]()
    compiled = torch.compile(gate, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(9, D)
    gate(x).weights.square().sum().backward()
    expected = gate.score.weight.grad.clone()
    gate.zero_grad()
    compiled(x).weights.square().sum().backward()
    torch.testing.assert_close(gate.score.weight.grad, expected)
    assert gate.balance.seen.sum() == 2 * 9 * 2


@pytest.mark.parametrize("name", COMPILED)
def test_gates_export_with_a_dynamic_number_of_rows(name):
    gate = ROW_GATES[name]().eval()
    rows = torch.export.Dim("rows")
    program = torch.export.export(gate, (torch.randn(8, D),), dynamic_shapes={"x": {0: rows}})
    for n in (2, 21):
        x = torch.randn(n, D)
        same(program.module()(x), gate(x))


def test_noise_and_padding_compile():
    torch._dynamo.reset()
    gate = Gate(Linear(D, E), topk(2), perturb=Gaussian())
    compiled = torch.compile(gate, fullgraph=True, dynamic=True, backend="eager")
    for rows in (8, 13):
        compiled(torch.randn(rows, D), valid=torch.rand(rows) < 0.5).check()


def test_composition_compiles():
    torch._dynamo.reset()
    inner, outer = Gate(Tasks(D, 2, 3), softmax), Gate.softmax(D, 3)

    def both(x):
        return outer(x).compose(inner(x), [[0, 1], [0, 2], [1, 2]]).weights

    x = torch.randn(9, D)
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(x), both(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topk", "topp", "capacity_prob"])
def test_gates_compile_with_the_default_backend(name):
    torch._dynamo.reset()
    gate = ROW_GATES[name]()
    x = torch.randn(13, D)
    same(torch.compile(gate, fullgraph=True, dynamic=True)(x), gate(x))


def test_expert_choice_function_serves_as_a_selection():
    gate = Gate(Linear(D, E), expert_choice(capacity=1))
    assert gate(torch.randn(2, 8, D)).check().indices.shape == (2, E, 2)
