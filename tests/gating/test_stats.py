import math

import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.gating import stats
from moeapps.gating.routing import Routing
from moeapps.gating.stats import DeadExperts, routing_stats


def make_token(indices, num_experts, **fields):
    indices = torch.as_tensor(indices)
    weights = (indices >= 0).float()
    return Routing(weights, num_experts, indices, layout="token", **fields)


def test_even_use():
    even = torch.full((4, 4), 0.25)
    routing = make_token([[0], [1], [2], [3]], 4, probs=even)
    values = routing_stats(routing)
    expected = {
        "load_entropy": 1, "cv": 0, "max_violation": 0, "effective_experts": 4, "dead_experts": 0,
        "gate_entropy": 1, "margin": 0, "dropped": 0, "null_rate": 0, "mean_active": 1,
    }  # fmt: skip
    assert {name: values[name].item() for name in expected} == pytest.approx(expected)
    assert values["utilisation"].tolist() == [0.25] * 4


def test_collapsed_use():
    probs = torch.zeros(5, 4)
    probs[:, 2] = 1
    values = routing_stats(make_token([[2]] * 5, 4, probs=probs))
    expected = {
        "load_entropy": 0, "cv": math.sqrt(3), "max_violation": 3, "effective_experts": 1,
        "dead_experts": 0.75, "gate_entropy": 0, "saturation": 1, "margin": 1,
    }  # fmt: skip
    assert {name: values[name].item() for name in expected} == pytest.approx(expected)


def test_padding_and_nan_rows_change_nothing():
    probs = torch.randn(4, 3).softmax(-1)
    indices = probs.argmax(-1, keepdim=True)
    clean = routing_stats(Routing(probs.amax(-1, keepdim=True), 3, indices, probs=probs,
                                  layout="token"))  # fmt: skip
    probs = torch.cat([probs, torch.full((1, 3), float("nan")), torch.tensor([[1.0, 0, 0]])])
    indices = torch.cat([indices, torch.tensor([[0], [-1]])])
    weights = torch.cat([clean_weights(probs[:4]), torch.tensor([[float("nan")], [0.0]])])
    valid = torch.tensor([True] * 5 + [False])
    spoilt = routing_stats(Routing(weights, 3, indices, probs=probs, valid=valid, layout="token"))
    for name, value in clean.items():
        torch.testing.assert_close(spoilt[name], value, msg=name)


def clean_weights(probs):
    return probs.amax(-1, keepdim=True)


def test_dropped_and_null_rate():
    # asked: 0, 0 | 1, null | 0, null ; capacity lost two of the three visits to expert 0
    choices = torch.tensor([[0, 1], [1, 2], [0, 3]])
    indices = torch.tensor([[0, 1], [1, -1], [-1, -1]])
    probs = torch.full((3, 4), 0.25)
    values = routing_stats(make_token(indices, 2, probs=probs, extra={"choices": choices}))
    assert values["dropped"].item() == pytest.approx(1 / 4)
    assert values["null_rate"].item() == pytest.approx(2 / 6)
    assert values["mean_active"].item() == pytest.approx(1)


def test_saturation_and_margin():
    weights = torch.tensor([[0.96, 0.04], [0.6, 0.4]])
    values = routing_stats(Routing(weights, 2, probs=weights))
    assert values["saturation"].item() == 0.5
    assert values["margin"].item() == pytest.approx((0.92 + 0.2) / 2)


def test_one_expert_alone():
    values = routing_stats(Routing(torch.ones(3, 1), 1, probs=torch.ones(3, 1)))
    assert all(value.isfinite().all() for value in values.values())
    assert values["dead_experts"].item() == 0


def test_weights_stand_for_missing_probs():
    weights = torch.tensor([[2.0, 2.0], [0.0, 4.0]])
    with_probs = Routing(weights, 2, probs=weights / 4)
    for name, value in routing_stats(with_probs).items():
        torch.testing.assert_close(routing_stats(Routing(weights, 2))[name], value, msg=name)


@pytest.mark.parametrize("layout", ["expert", "slot"])
def test_group_layouts_have_statistics(layout):
    probs = torch.full((1, 4, 2), 0.5)
    if layout == "expert":
        indices = torch.tensor([[[0, 1], [2, -1]]])
        routing = Routing((indices >= 0).float(), 2, indices, probs=probs, layout="expert")
        expected = [2 / 3, 1 / 3]
    else:
        half = torch.full((1, 4, 2, 1), 0.5)
        routing = Routing(half, 2, dispatch=half, probs=probs, layout="slot")
        expected = [0.5, 0.5]
    values = routing_stats(routing)
    assert values["utilisation"].tolist() == pytest.approx(expected)
    assert all(value.isfinite().all() for value in values.values())


def test_no_rows_give_finite_values():
    routing = make_token(torch.zeros(0, 1, dtype=torch.int64), 3, probs=torch.zeros(0, 3))
    assert all(value.isfinite().all() for value in routing_stats(routing).values())


def test_statistics_carry_no_gradient():
    probs = torch.randn(4, 3, requires_grad=True).softmax(-1)
    values = routing_stats(Routing(probs, 3, probs=probs))
    assert not any(value.requires_grad for value in values.values())


def test_fluctuation_counts_changed_sets_not_changed_order():
    before = make_token([[0, 1], [1, 2], [0, 2]], 3)
    now = make_token([[1, 0], [1, 2], [0, 1]], 3)
    assert stats.fluctuation(before, now).item() == pytest.approx(1 / 3)
    assert stats.fluctuation(before, before).item() == 0
    # Jaccard of {0,2} and {0,1} is 1/3
    expected = (0 + 0 + 2 / 3) / 3
    assert stats.fluctuation(before, now, measure="jaccard").item() == pytest.approx(expected)


def test_fluctuation_needs_the_same_rows():
    with pytest.raises(ArgumentError, match="same probe rows"):
        stats.fluctuation(make_token([[0]], 2), make_token([[0], [1]], 2))


def test_specialisation_matches_sklearn():
    mutual_info_score = pytest.importorskip(
        "sklearn.metrics", reason="needs pip install scikit-learn"
    ).mutual_info_score
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(4, (300, 1), generator=generator)
    labels = torch.where(
        torch.rand(300, generator=generator) < 0.5,
        first[:, 0] % 3,
        torch.randint(3, (300,), generator=generator),
    )
    label_entropy = mutual_info_score(labels, labels)
    expected = mutual_info_score(first[:, 0], labels) / label_entropy
    found = stats.specialisation(make_token(first, 4), labels, permutations=0)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_specialisation_of_independent_labels_is_about_zero():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(8, (60, 1), generator=generator)
    labels = torch.randint(5, (60,), generator=generator)
    raw = stats.specialisation(make_token(first, 8), labels, permutations=0)
    corrected = stats.specialisation(make_token(first, 8), labels)
    assert raw > 0.1  # finite samples look informative
    assert abs(corrected) < 0.05


def test_specialisation_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    routing = make_token([[0], [1], [0], [1]], 2)
    labels = torch.tensor([0, 1, 1, -1])
    first = stats.specialisation(routing, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, stats.specialisation(routing, labels))


def test_specialisation_with_one_class_or_no_label_is_zero():
    routing = make_token([[0], [1]], 2)
    assert stats.specialisation(routing, torch.tensor([0, 0])).item() == 0
    assert stats.specialisation(routing, torch.tensor([-1, -1])).item() == 0


def test_pairwise_agreement_equals_a_loop():
    rows = [[0, 1], [1, 2], [2, -1]]
    expected = torch.zeros(3, 3)
    for row in rows:
        for i in row:
            for j in row:
                if i >= 0 and j >= 0:
                    expected[i, j] += 1 / 3
    torch.testing.assert_close(stats.pairwise_agreement(make_token(rows, 3)), expected)


def test_task_divergence_of_equal_and_disjoint_gates():
    same = torch.tensor([[0.3, 0.7]]).expand(4, 3, 2)
    assert stats.task_divergence(Routing(same, 2, probs=same)).item() == pytest.approx(0, abs=1e-6)
    disjoint = torch.eye(3).expand(4, 3, 3)
    value = stats.task_divergence(Routing(disjoint, 3, probs=disjoint)).item()
    assert value == pytest.approx(math.log(3))


def test_task_divergence_needs_a_task_axis():
    with pytest.raises(ArgumentError, match="task gates"):
        stats.task_divergence(Routing(torch.ones(2, 2), 2))


def test_dead_experts_after_a_while_of_idleness():
    tracker = DeadExperts(4, window=10)
    counts = torch.tensor([8, 8, 8, 0])
    values = [tracker.update(counts).item() for _ in range(40)]
    assert values[0] == 0
    assert values[-1] == 0.25
    # share fades as 1/4 (1 - 1/10)^n and crosses 0.1/4 after 22 steps
    assert values.index(0.25) == 21


def test_dead_expert_revives():
    tracker = DeadExperts(2, window=1)
    assert tracker.update(torch.tensor([5, 0])).item() == 0.5
    assert tracker.update(torch.tensor([5, 5])).item() == 0


def test_steps_without_rows_do_not_kill_experts():
    tracker = DeadExperts(3, window=2)
    for _ in range(20):
        value = tracker.update(torch.zeros(3, dtype=torch.int64))
    assert value.item() == 0
