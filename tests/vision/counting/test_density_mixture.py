import pytest
import torch
import torch.nn.functional as F

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.vision.counting.density_mixture import (
    FlatDensityMixture,
    HierarchicalDensityMixture,
)


def head(num_experts=3, **more):
    small = {"gate_widths": [6], "second_widths": [6], "attention_widths": [4], **more}
    torch.manual_seed(0)
    made = HierarchicalDensityMixture(num_experts, 5, **small)
    for parameter in made.parameters():  # gates that decide something
        torch.nn.init.normal_(parameter, std=0.7)
    return made


def inputs(num_experts=3):
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(2, num_experts, 8, 12, generator=generator)
    return maps, torch.randn(2, 5, 2, 3, generator=generator)


@pytest.mark.parametrize("relu", [False, True])
def test_it_is_the_equations_pixel_by_pixel(relu):
    mixture, (maps, features) = head(relu_logits=relu), inputs()
    aux = mixture(maps, features)
    up = torch.nn.Upsample(scale_factor=4)
    logits = mixture.first.score.layers(features)
    logits = logits.relu() if relu else logits
    groups = []
    for g, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        w = up(logits[:, 2 * g : 2 * g + 2].softmax(1))
        groups.append(w[:, 0] * maps[:, i] + w[:, 1] * maps[:, j])
    groups = torch.stack(groups, 1)
    attention = mixture.attention.layers(features).sigmoid()
    among = mixture.second.score.layers(attention * features)
    among = among.relu() if relu else among
    output = (up(among.softmax(1)) * groups).sum(1, keepdim=True)
    torch.testing.assert_close(aux["groups"], groups)
    torch.testing.assert_close(aux["attention"], attention)
    torch.testing.assert_close(aux["output"], output)
    # the weights of the experts say the same in one step
    torch.testing.assert_close((up(aux["weights"]) * maps).sum(1, keepdim=True), output)


def test_importance_of_pairs_is_their_squared_coefficient_of_variation():
    mixture, (maps, features) = head(), inputs()
    logits = mixture.first.score.layers(features)
    expected = 0.0
    for g in range(3):
        v = logits[:, 2 * g : 2 * g + 2].detach().softmax(1).sum((0, 2, 3))
        expected += float(v.var() / v.mean() ** 2)
    assert mixture(maps, features)["importance"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("num_experts", "num_groups"), [(2, 1), (3, 3), (4, 6), (5, 10)])
def test_any_number_of_experts_makes_all_pairs(num_experts, num_groups):
    mixture, (maps, features) = head(num_experts), inputs(num_experts)
    aux = mixture(maps, features)
    assert aux["groups"].shape == (2, num_groups, 8, 12)
    assert aux["output"].shape == (2, 1, 8, 12)
    torch.testing.assert_close(aux["weights"].sum(1), torch.ones(2, 2, 3))
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    assert (aux["output"] >= low - 1e-6).all()
    assert (aux["output"] <= high + 1e-6).all()
    if num_experts == 2:
        assert mixture.second is None
        assert torch.equal(aux["output"], aux["groups"])


def test_groups_of_other_sizes_keep_to_their_members():
    mixture, (maps, features) = head(4, groups=[[0, 1, 2], [2, 3]]), inputs(4)
    assert mixture.first.score.layers[-1].out_channels == 5
    weights = mixture(maps, features)["gates"][0].weights
    assert weights.shape == (2, 2, 3, 2, 4)
    assert not weights[..., 0, 3].any()
    assert not weights[..., 1, :2].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3, 2))


def test_equal_maps_pass_through_every_mixture():
    maps, features = inputs()
    same = maps[:, :1].expand(-1, 3, -1, -1)
    for mixture in (head(), FlatDensityMixture(3, 5, gate_widths=[4])):
        torch.testing.assert_close(mixture(same, features)["output"], maps[:, :1])


def test_gates_report_valid_routings_of_their_own():
    mixture, (maps, features) = head(), inputs()
    with gating.record(mixture) as record:
        mixture(maps, features)
    assert list(record.routings) == ["first", "second"]
    for (routing,) in record.routings.values():
        routing.check()
    with gating.record(flat := FlatDensityMixture(3, 5)) as record:
        flat(maps, features)
    assert [r.check().weights.shape for r in record.routings["gate"]] == [(2, 2, 3, 3)]


def test_half_precision_maps_are_mixed_in_float32():
    mixture, (maps, features) = head(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        aux = mixture(maps.bfloat16(), features.bfloat16())
    assert aux["output"].dtype == torch.float32
    assert F.mse_loss(aux["output"], mixture(maps, features)["output"]) < 1e-3


@pytest.mark.parametrize(
    ("num_experts", "groups"),
    [(1, "pairs"), (3, [[0, 1]]), (3, [[0, 1], [2]]), (3, [[0, 1], [2, 3]]), (2, [[0, 0, 1]])],
)
def test_groups_that_cannot_be_are_refused(num_experts, groups):
    with pytest.raises(ArgumentError, match="expected"):
        HierarchicalDensityMixture(num_experts, 5, groups=groups)
