import math

import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.gating import losses
from moeapps.gating.losses import LOSSES
from moeapps.gating.routing import Routing


def make_token(logits, top_k, *, valid=None, extra=None):
    """Plain softmax top-k routing, independent of the selections under test elsewhere."""
    probs = logits.softmax(-1)
    indices = probs.nan_to_num().topk(top_k, dim=-1).indices
    weights = probs.gather(-1, indices)
    if valid is not None:
        keep = valid.unsqueeze(-1)
        indices, weights = indices.where(keep, -1), weights.where(keep, 0)
    return Routing(
        weights, logits.shape[-1], indices, logits=logits, probs=probs, valid=valid,
        layout="token", extra=extra or {},
    )  # fmt: skip


def make_uniform(num_experts):
    """One row per expert, each sent there, with an even distribution."""
    even = torch.full((num_experts, num_experts), 1 / num_experts, dtype=torch.float64)
    indices = torch.arange(num_experts).unsqueeze(-1)
    return Routing(even[:, :1], num_experts, indices, probs=even, layout="token")


def make_collapsed(num_experts, num_rows=6):
    probs = torch.zeros(num_rows, num_experts, dtype=torch.float64)
    probs[:, 0] = 1
    indices = torch.zeros(num_rows, 1, dtype=torch.int64)
    return Routing(probs[:, :1], num_experts, indices, probs=probs, layout="token")


@pytest.mark.parametrize("num_experts", [2, 5])
@pytest.mark.parametrize(
    ("name", "uniform", "collapsed"),
    [
        ("balance", lambda e: 1, lambda e: e),
        ("importance", lambda e: 0, lambda e: e - 1),
        ("row_entropy", math.log, lambda e: 0),
        ("marginal_entropy", lambda e: -math.log(e), lambda e: 0),
        ("score_variance", lambda e: 0, lambda e: 0),
    ],
)
def test_closed_form_at_uniform_and_collapsed_use(name, uniform, collapsed, num_experts):
    assert LOSSES[name](make_uniform(num_experts)).item() == pytest.approx(uniform(num_experts))
    assert LOSSES[name](make_collapsed(num_experts)).item() == pytest.approx(collapsed(num_experts))


def test_router_z_is_squared_log_of_experts_at_zero_logits():
    routing = make_token(torch.zeros(3, 4, dtype=torch.float64), 2)
    assert losses.router_z(routing).item() == pytest.approx(math.log(4) ** 2)


def test_router_z_is_finite_for_large_logits():
    routing = make_token(torch.tensor([[1e4, 0.0], [0.0, -1e4]]), 1)
    assert losses.router_z(routing).item() == pytest.approx((1e8 + 0) / 2)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_is_not_multiplied_by_top_k(top_k):
    """Even use gives 1 for every K, where summing over choices would give K."""
    num_experts = 4
    even = torch.full((num_experts, num_experts), 1 / num_experts)
    indices = (torch.arange(num_experts).unsqueeze(-1) + torch.arange(top_k)) % num_experts
    routing = Routing(even[:, :top_k], num_experts, indices, probs=even, layout="token")
    assert losses.balance(routing).item() == pytest.approx(1)


def test_balance_equals_a_loop_over_rows():
    routing = make_token(torch.randn(50, 5, dtype=torch.float64), 2)
    counts = [0] * 5
    for row in routing.indices.tolist():
        for expert in row:
            counts[expert] += 1
    expected = 5 * sum(
        counts[e] / sum(counts) * routing.probs[:, e].mean().item() for e in range(5)
    )
    assert losses.balance(routing).item() == pytest.approx(expected)


def test_balance_of_first_choices_ignores_the_others():
    routing = make_token(torch.randn(50, 5, dtype=torch.float64), 3)
    first = make_token(routing.logits, 1)
    expected = losses.balance(first)
    torch.testing.assert_close(losses.balance(routing, first_choice=True), expected)
    assert not torch.allclose(losses.balance(routing), expected)


def test_balance_of_first_choices_needs_the_token_layout():
    dense = Routing(torch.full((2, 2), 0.5), 2, probs=torch.full((2, 2), 0.5))
    with pytest.raises(ArgumentError, match="token layout"):
        losses.balance(dense, first_choice=True)


def test_balance_gradient_pushes_down_the_heaviest_expert():
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    logits = (logits + torch.tensor([2.0, 0.0, 0.0, 0.0])).requires_grad_()
    losses.balance(make_token(logits, 1)).backward()
    per_expert = logits.grad.sum(0)
    assert per_expert[0] > 0  # descent lowers the heaviest expert's logits
    assert (per_expert[1:] < 0).all()


def test_balance_descent_evens_out_the_load():
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    start = make_token(rows @ weight, 1).counts().max().item()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        losses.balance(make_token(rows @ weight, 1)).backward()
        optimizer.step()
    assert make_token(rows @ weight, 1).counts().max().item() < start - 20


def test_balance_counts_what_rows_asked_for_not_what_capacity_left():
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    asked = torch.tensor([[0], [0], [1]])
    left = torch.tensor([[0], [-1], [1]])
    weights = (left >= 0).double()
    routing = Routing(weights, 2, left, probs=probs, layout="token", extra={"choices": asked})
    assert losses.balance(routing).item() == pytest.approx(2 * (2 / 3 * 2 / 3 + 1 / 3 * 1 / 3))


def test_load_equals_the_frequency_of_a_place_in_the_top_k():
    """One row: freezing the others' noise, redraw one expert's noise and count its wins."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    sigma = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.3
    noisy = clean + sigma * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    top_k, draws = 2, 40_000
    chance = torch.zeros(3, 5, dtype=torch.float64)
    for n in range(3):
        for e in range(5):
            others = torch.cat([noisy[n, :e], noisy[n, e + 1 :]])
            bar = others.sort(descending=True).values[top_k - 1]
            fresh = torch.randn(draws, generator=generator, dtype=torch.float64)
            again = clean[n, e] + sigma[n, e] * fresh
            chance[n, e] = (again > bar).double().mean()
    expected = losses.squared_cv(chance.sum(0))
    routing = make_token(noisy, top_k, extra={"noisy_logits": noisy, "sigma": sigma})
    routing = Routing(
        routing.weights, 5, routing.indices, logits=clean, probs=routing.probs, layout="token",
        extra=routing.extra,
    )  # fmt: skip
    torch.testing.assert_close(losses.load(routing), expected, atol=5e-3, rtol=0)


def test_load_with_the_kth_score_as_threshold_for_all():
    clean = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    routing = make_token(clean, 1, extra={"noisy_logits": clean})
    normal = torch.distributions.Normal(0.0, 1.0)
    chance = normal.cdf((clean[0] - 2.0) * 3)
    result = losses.load(routing, sigma=1 / 3, threshold="kth")
    torch.testing.assert_close(result, losses.squared_cv(chance))


def test_load_ignores_masked_experts():
    noisy = torch.tensor([[3.0, 2.0, 1.0, 9.0]], dtype=torch.float64, requires_grad=True)
    probs = noisy.where(torch.tensor([True, True, True, False]), -torch.inf).softmax(-1)
    routing = Routing(
        probs[:, :1], 4, torch.tensor([[0]]), logits=noisy, probs=probs, layout="token",
        extra={"noisy_logits": noisy, "sigma": torch.ones_like(noisy)},
    )  # fmt: skip
    normal = torch.distributions.Normal(0.0, 1.0)
    chance = normal.cdf(torch.tensor([3.0 - 2.0, 2.0 - 3.0, 1.0 - 3.0, -torch.inf]).double())
    value = losses.load(routing)
    torch.testing.assert_close(value, losses.squared_cv(chance))
    value.backward()
    assert noisy.grad.isfinite().all()


def test_load_without_noise_is_refused():
    with pytest.raises(ArgumentError, match="noise"):
        losses.load(make_token(torch.randn(4, 3), 1))


def test_load_falls_back_to_counts_when_every_expert_is_chosen():
    routing = make_token(torch.randn(4, 3), 3)
    assert losses.load(routing).item() == 0


def test_load_is_experts_minus_one_when_one_expert_gets_all():
    clean = torch.tensor([[50.0, 0, 0, 0]], dtype=torch.float64).expand(6, 4)
    routing = make_token(clean, 1, extra={"noisy_logits": clean, "sigma": torch.ones_like(clean)})
    assert losses.load(routing).item() == pytest.approx(3)


def test_mutual_information_is_zero_when_independent():
    probs = torch.full((6, 3), 1 / 3, dtype=torch.float64)
    routing = Routing(probs, 3, probs=probs)
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    assert losses.mutual_information(routing, groups).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("num_groups", "num_experts"), [(2, 4), (4, 2), (3, 3)])
def test_mutual_information_with_one_expert_per_group(num_groups, num_experts):
    rows = torch.arange(12)
    groups = rows % num_groups
    probs = torch.nn.functional.one_hot(rows % min(num_groups, num_experts), num_experts).double()
    routing = Routing(probs, num_experts, probs=probs)
    value = losses.mutual_information(routing, groups).item()
    assert value == pytest.approx(-math.log(min(num_groups, num_experts)))


def test_mutual_information_broadcasts_over_task_gates():
    probs = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)  # [N, T, E]
    routing = Routing(probs, 3, probs=probs)
    value = losses.mutual_information(routing, torch.arange(3), num_groups=3)
    assert value.item() == pytest.approx(-math.log(3))


def make_null(choices, num_experts=2, num_null=2):
    picks = torch.tensor(choices)
    width = num_experts + num_null
    probs = torch.full((len(choices), width), 1 / width, dtype=torch.float64)
    indices = picks.where(picks < num_experts, -1)
    weights = (indices >= 0).double()
    return Routing(
        weights, num_experts, indices, probs=probs, layout="token", extra={"choices": picks}
    )


def test_null_balance_does_not_care_which_null_expert_was_chosen():
    probs = torch.tensor([[0.1, 0.2, 0.6, 0.1], [0.3, 0.1, 0.2, 0.4]], dtype=torch.float64)
    values = []
    for choices in ([[0, 2], [1, 2]], [[0, 3], [1, 2]], [[0, 3], [1, 3]]):
        routing = make_null(choices)
        routing = Routing(
            routing.weights, 2, routing.indices, probs=probs, layout="token", extra=routing.extra
        )
        values.append(losses.null_balance(routing).item())
    # f = (1/4, 1/4, 1/4, 1/4) whichever null column was hit
    assert values == pytest.approx([1.0, 1.0, 1.0])


def test_null_balance_charges_a_collapse_onto_true_experts():
    routing = make_null([[0, 1], [0, 1]])
    probs = torch.tensor([[0.5, 0.5, 0.0, 0.0]] * 2, dtype=torch.float64)
    routing = Routing(
        routing.weights, 2, routing.indices, probs=probs, layout="token", extra=routing.extra
    )
    assert losses.null_balance(routing).item() == pytest.approx(2)


def test_null_balance_needs_null_experts():
    with pytest.raises(ArgumentError, match="null experts"):
        losses.null_balance(make_uniform(3))


def test_balance_of_a_null_gate_is_about_the_true_experts():
    routing = make_null([[0, 2], [1, 3]])
    assert losses.balance(routing).item() == pytest.approx(1)


def test_score_variance_matches_the_population_variance():
    routing = make_token(torch.randn(30, 4, dtype=torch.float64), 1)
    expected = -routing.probs.var(0, correction=0).mean()
    torch.testing.assert_close(losses.score_variance(routing), expected)


def _noise(logits):
    # A fixed table, so that a longer batch begins with the noise of a shorter one.
    table = torch.randn(256, generator=torch.Generator().manual_seed(5))
    noise = table[: logits.numel()].view(logits.shape).to(logits)
    return {"noisy_logits": logits + noise, "sigma": torch.full_like(logits, 0.7)}


def _evaluate(name, logits, valid=None):
    if name == "null_balance":
        logits = torch.cat([logits, logits.flip(-1)], -1)
        routing = make_token(logits, 2, valid=valid)
        picks = routing.indices
        true = picks.where(picks < 4, -1)
        routing = Routing(
            routing.weights.where(true >= 0, 0), 4, true, logits=logits, probs=routing.probs,
            valid=valid, layout="token", extra={"choices": picks},
        )  # fmt: skip
    else:
        routing = make_token(logits, 2, valid=valid, extra=_noise(logits))
    return LOSSES[name](routing)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradcheck(name):
    logits = torch.randn(
        7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: _evaluate(name, logits), logits)


def test_gradcheck_of_mutual_information():
    logits = torch.randn(7, 4, dtype=torch.float64).requires_grad_()
    groups = torch.tensor([0, 1, 2, 0, 1, 2, 0])

    def value(logits):
        return losses.mutual_information(make_token(logits, 1), groups)

    assert torch.autograd.gradcheck(value, logits)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_padding_and_nan_rows_change_nothing(name):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    clean = _evaluate(name, logits[:4])
    spoilt = logits.clone()
    spoilt[4] = float("nan")
    spoilt[5] = 30 * torch.randn(4, dtype=torch.float64, generator=generator)
    valid = torch.tensor([True, True, True, True, True, False])
    torch.testing.assert_close(_evaluate(name, spoilt, valid), clean)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_is_finite_with_a_masked_expert_and_zero_beside_padding(name):
    logits = torch.randn(5, 4, dtype=torch.float64)
    logits[:, 3] = -800.0  # softmax gives exactly 0
    logits = logits.requires_grad_()
    valid = torch.tensor([True, True, True, True, False])
    value = _evaluate(name, logits, valid)
    if value.requires_grad:
        value.backward()
        assert logits.grad.isfinite().all()
        assert (logits.grad[4] == 0).all()
    assert value.isfinite()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_no_rows_give_a_finite_value(name):
    value = _evaluate(name, torch.zeros(0, 4))
    assert value.shape == ()
    assert value.isfinite()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_leading_axes_are_only_a_shape(name):
    logits = torch.randn(6, 4, dtype=torch.float64)
    if name == "load":
        noise = _noise(logits)
        folded = {key: value.view(2, 3, 4) for key, value in noise.items()}
        flat = losses.load(make_token(logits, 2, extra=noise))
        deep = losses.load(make_token(logits.view(2, 3, 4), 2, extra=folded))
    else:
        flat, deep = _evaluate(name, logits), _evaluate(name, logits.view(2, 3, 4))
    torch.testing.assert_close(deep, flat)


@pytest.mark.parametrize("name", ["balance", "importance", "row_entropy", "score_variance"])
def test_losses_without_probabilities_say_so(name):
    with pytest.raises(ArgumentError, match="probs"):
        LOSSES[name](Routing(torch.ones(2, 2), 2))


def _sum_of_two_processes(rank, address, results):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    probs = torch.eye(2, dtype=torch.float64)[[rank, rank]]  # each process sees one expert only
    routing = Routing(torch.ones(2, 1), 2, torch.full((2, 1), rank), probs=probs, layout="token")
    results[rank] = (losses.balance(routing).item(), losses.balance(routing, sync=True).item())
    dist.destroy_process_group()


def test_sync_balances_over_all_processes(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        address = f"file://{tmp_path}/meet"
        workers = [
            context.Process(target=_sum_of_two_processes, args=(rank, address, results))
            for rank in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        values = dict(results)
    # alone each process looks collapsed (E = 2); together the use is even (1)
    assert values == {0: (2.0, 1.0), 1: (2.0, 1.0)}


def test_sync_without_processes_is_the_plain_loss():
    routing = make_token(torch.randn(9, 3), 2)
    torch.testing.assert_close(losses.balance(routing, sync=True), losses.balance(routing))


def test_losses_compile_into_one_graph():
    logits = torch.randn(12, 4)

    def value(logits):
        routing = make_token(logits, 2)
        return sum(LOSSES[name](routing) for name in ("balance", "importance", "router_z"))

    compiled = torch.compile(value, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits), value(logits))
