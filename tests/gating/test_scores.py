import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError, GateError
from moeapps.gating.scores import (
    MLP,
    Confidence,
    Constant,
    Conv,
    Fixed,
    Hash,
    Linear,
    PooledLinear,
    TaskConditioned,
    Tasks,
)
from moeapps.gating.similarity_scores import Cosine, Prototype, Recurrent, SimilarityAware, Slots

D, E = 6, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


ROW_SCORES = {
    "linear": lambda: Linear(D, E),
    "mlp": lambda: MLP(D, E, (8, 4), dropout=0.2).eval(),
    "tasks": lambda: Tasks(D, E, 3),
    "constant": lambda: Constant(E),
    "cosine": lambda: Cosine(D, E),
    "cosine_xmoe": lambda: Cosine(D, E, dim=E // 2, temperature=0.07),
    "prototype": lambda: Prototype(D, E),
}


@pytest.mark.parametrize("name", ROW_SCORES)
def test_scores_pass_gradcheck_and_reach_every_parameter(name):
    score = ROW_SCORES[name]().double()
    x = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(score, x)
    score(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in score.parameters())


@pytest.mark.parametrize("name", ROW_SCORES)
def test_rows_are_scored_one_by_one_and_shapes_are_kept(name):
    score = ROW_SCORES[name]()
    x = torch.randn(2, 5, D)
    torch.testing.assert_close(score(x)[1, 3], score(x[1, 3:4])[0])
    assert score(x[:0]).shape[:2] == (0, 5)


def test_linear_starts_small_and_has_no_bias():
    score = Linear(500, 40)
    assert abs(float(score.weight.detach().std()) - 0.02) < 0.001
    assert len(list(score.parameters())) == 1


@pytest.mark.parametrize("score", [Linear(D, E), Tasks(D, E, 2), Cosine(D, E), Prototype(D, E)])
def test_a_wrong_width_is_named(score):
    with pytest.raises(GateError, match=r"expected \[..., 6\], got \[3, 7\]"):
        score(torch.zeros(3, 7))


def test_pooled_linear_scores_the_mean_position():
    score = PooledLinear(D, E)
    x = torch.randn(2, D, 3, 5)
    torch.testing.assert_close(score(x), x.mean((2, 3)) @ score.weight.T)


def test_mlp_layers_follow_the_widths():
    score = MLP(D, E, (32, 16), dropout=0.2)
    kinds = [type(layer).__name__ for layer in score]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [layer.out_features for layer in score if isinstance(layer, nn.Linear)] == [32, 16, E]
    assert not score[0].bias.any()
    assert MLP(D, E, 8)(torch.zeros(2, D)).shape == (2, E)


def test_each_task_has_its_own_map_and_sees_its_experts():
    visible = torch.tensor([[True] * E, [True, False, True, False]])
    score = Tasks(D, E, 2, visible=visible)
    x = torch.randn(3, D)
    logits = score(x)
    torch.testing.assert_close(logits[:, 0], x @ score.weight[:E].T)
    assert (logits[:, 1, [1, 3]] == -math.inf).all()
    assert logits[:, 1, [0, 2]].isfinite().all()
    with pytest.raises(ArgumentError, match="visible"):
        Tasks(D, E, 3, visible=visible)


def test_task_conditioned_equals_the_concatenated_map():
    score = TaskConditioned(D, E, 3, embed_dim=5)
    x, task = torch.randn(2, 7, D), torch.tensor([0, 2])
    embedded = score.embedding(task)[:, None].expand(2, 7, 5)
    expected = torch.cat([x, embedded], -1) @ score.weight.T
    torch.testing.assert_close(score(x, cond=task), expected)
    torch.testing.assert_close(score(x, cond=task[:, None].expand(2, 7)), expected)
    with pytest.raises(GateError, match="cond"):
        score(x)


@pytest.mark.parametrize("kernel", [1, 3])
def test_conv_scores_every_pixel_with_experts_last(kernel):
    score = Conv(D, (3, 2), kernel)
    x = torch.randn(2, D, 5, 4)
    logits = score(x)
    assert logits.shape == (2, 5, 4, 3, 2)
    torch.testing.assert_close(logits.flatten(3), score.conv(x).permute(0, 2, 3, 1))
    with pytest.raises(ArgumentError, match="even"):
        Conv(D, E, 2)


def test_conv_can_have_a_bias_that_starts_at_zero():
    assert not Conv(D, E, bias=True).conv.bias.any()


def test_cosine_follows_its_formula_and_caps_the_scale():
    score = Cosine(D, E)
    x = torch.randn(3, D)
    p, e = score.project(x), score.experts
    cosine = (p @ e.T) / p.norm(dim=-1)[:, None] / e.norm(dim=-1)
    torch.testing.assert_close(score(x), 2 * cosine)
    with torch.no_grad():
        score.log_scale.fill_(20.0)
    torch.testing.assert_close(score(x), 100 * cosine)
    assert Cosine(600, E).project.out_features == 256
    with pytest.raises(ArgumentError, match="temperature"):
        Cosine(D, E, temperature=0)


def test_prototype_is_the_cosine():
    score = Prototype(D, E)
    x = torch.randn(3, D)
    expected = F.cosine_similarity(x[:, None], score.prototypes[None], dim=-1)
    torch.testing.assert_close(score(x), expected)


def test_slots_are_scaled_cosines():
    score = Slots(D, E, 2)
    x = torch.randn(2, 5, D)
    with torch.no_grad():
        score.scale.fill_(3.0)
    cosine = F.cosine_similarity(x[:, :, None, None], score.phi.permute(1, 2, 0), dim=-1)
    torch.testing.assert_close(score(x), 3 * cosine)


def test_recurrent_state_travels_and_the_cell_is_shared():
    first = Recurrent(D, E, state_size=8)
    second = Recurrent(D, E, cell=first.cell)
    x = torch.randn(2, 5, D)
    _, extra = first(x)
    assert extra["state"].shape == (2, 5, 8)
    logits, after = second(x, **extra)
    h = first.cell(second.project(x).flatten(0, 1), extra["state"].flatten(0, 1))
    torch.testing.assert_close(after["state"], h.view(2, 5, 8))
    torch.testing.assert_close(logits, (h @ second.weight.T).view(2, 5, E))
    assert not torch.allclose(logits, second(x)[0])
    logits.sum().backward()
    assert first.project.weight.grad.abs().sum() > 0  # through the state
    alone, state = first(x[0])
    assert alone.shape == (5, E)
    assert state["state"].shape == (5, 8)


def test_similarity_aware_averages_logits_over_similar_rows():
    score = SimilarityAware(Linear(D, E), D, temperature=0.5)
    x = torch.randn(2, 5, D)
    attention = (x @ score.similarity @ x.transpose(1, 2) / 0.5).softmax(-1)
    torch.testing.assert_close(score(x), attention @ score.score(x))
    by_caller = SimilarityAware(score.score)
    torch.testing.assert_close(by_caller(x, cond=attention), score(x))
    with pytest.raises(GateError, match="attention"):
        by_caller(x)


def test_similarity_aware_does_not_read_padding():
    score = SimilarityAware(Linear(D, E), D)
    x = torch.randn(1, 5, D)
    valid = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(score(x, valid=valid)[:, :3], score(x[:, :3]))


def test_fixed_is_saved_and_never_trained():
    score = Fixed(D, E)
    assert not list(score.parameters())
    assert "weight" in score.state_dict()
    assert score(torch.randn(3, D)).shape == (3, E)


def test_hash_follows_its_formula_for_every_id():
    ids = torch.tensor([0, 1, 7, 12345, 2**31 - 1, 2**40 + 3])
    expected = [(i * 2654435761) % 2**32 % E for i in ids.tolist()]
    assert Hash(E)(ids).argmax(-1).tolist() == expected
    assert Hash(E)(torch.zeros(6, D), cond=ids).argmax(-1).tolist() == expected
    share = Hash(E)(torch.arange(4000)).mean(0)
    torch.testing.assert_close(share, torch.full((E,), 1 / E), atol=0.02, rtol=0)


def test_hash_takes_a_stored_table():
    score = Hash(3, table=torch.tensor([2, 0, 1]))
    assert score(torch.tensor([[0, 1], [2, 0]])).argmax(-1).tolist() == [[2, 0], [1, 2]]
    with pytest.raises(ArgumentError, match="table"):
        Hash(2, table=torch.tensor([2]))
    with pytest.raises(GateError, match="ids"):
        score(torch.zeros(2, D))


def test_constant_is_the_same_for_every_row():
    score = Constant(E)
    with torch.no_grad():
        score.weight.copy_(torch.arange(4.0))
    assert (score(torch.randn(2, 3, D)) == torch.arange(4.0)).all()


def test_confidence_mixes_two_experts_by_c():
    s = torch.tensor([-200.0, -3.0, 0.0, 3.0, 200.0], requires_grad=True)
    logits = Confidence()(s)
    torch.testing.assert_close(logits.softmax(-1)[:, 0], s.sigmoid())
    assert logits.isfinite().all()
    (grad,) = torch.autograd.grad(logits.softmax(-1)[:, 0].sum(), s)
    torch.testing.assert_close(grad, (s.sigmoid() * (-s).sigmoid()).detach())


def test_confidence_takes_probabilities_up_to_the_ends():
    c = torch.tensor([0.0, 0.2, 1.0], requires_grad=True)
    weights = Confidence(probability=True)(c).softmax(-1)
    torch.testing.assert_close(weights, torch.stack([c, 1 - c], -1))
    (grad,) = torch.autograd.grad(weights[:, 0].sum(), c)
    assert grad.isfinite().all()


@pytest.mark.parametrize("keep", [False, True])
def test_confidence_wraps_a_function_or_a_module(keep):
    x = torch.rand(5, 3)
    score = Confidence(lambda p: p.amax(-1, keepdim=keep), probability=True)
    torch.testing.assert_close(score(x).exp()[:, 0], x.amax(-1))
    module = Confidence(nn.Linear(3, 1))
    assert module(x).shape == (5, 2)
    assert len(list(module.parameters())) == 2
