import math

import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import ArgumentError
from moeapps.gating import expert_losses as losses
from moeapps.gating.routing import Routing


def make_token(indices, num_experts, valid=None):
    indices = torch.as_tensor(indices)
    weights = (indices >= 0).double()
    return Routing(weights, num_experts, indices, valid=valid, layout="token")


def test_consistency_is_half_the_symmetric_kl():
    p, q = torch.randn(2, 6, 4, dtype=torch.float64)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    forward = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    backward = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(losses.consistency(p, q), ((forward + backward) / 2).mean())
    torch.testing.assert_close(losses.consistency(p, q), losses.consistency(q, p))


def test_consistency_is_finite_for_certain_predictions():
    p, q = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
    assert losses.consistency(p, q).isfinite()


def test_orthogonality_of_equal_and_of_orthogonal_rows():
    assert losses.orthogonality(torch.ones(3, 4)).item() == pytest.approx(1)
    assert losses.orthogonality(torch.eye(3)).item() == 0
    assert losses.orthogonality(torch.ones(1, 4)).item() == 0


def test_orthogonality_flattens_stacked_experts():
    weight = torch.randn(4, 3, 5, dtype=torch.float64)
    flat = F.normalize(weight.reshape(4, 15), dim=-1)
    cosines = flat @ flat.T
    expected = sum(cosines[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 12
    torch.testing.assert_close(losses.orthogonality(weight), expected)


def test_output_diversity_equals_a_loop_and_skips_padding():
    ys = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    pairs = [
        F.cosine_similarity(ys[b, n, i], ys[b, n, j], dim=0) ** 2
        for b in range(2) for n in range(3) if valid[b, n]
        for i in range(4) for j in range(4) if i != j
    ]  # fmt: skip
    expected = torch.stack(pairs).mean()
    torch.testing.assert_close(losses.output_diversity(ys, valid), expected)
    ys[0, 2] = float("nan")
    torch.testing.assert_close(losses.output_diversity(ys), expected)


def test_prototype_contrast_equals_cross_entropy_over_used_experts():
    x = torch.randn(6, 4, dtype=torch.float64)
    prototypes = torch.randn(4, 4, dtype=torch.float64)
    routing = make_token([[0], [0], [1], [3], [3], [3]], 4)  # expert 2 gets nothing
    means = torch.stack([x[:2].mean(0), x[2], x[3:].mean(0)])
    alive = [0, 1, 3]
    cosines = F.normalize(prototypes[alive], dim=-1) @ F.normalize(means, dim=-1).T
    expected = F.cross_entropy(cosines / 0.07, torch.arange(3))
    torch.testing.assert_close(losses.prototype_contrast(routing, x, prototypes), expected)


def test_prototype_contrast_counts_a_row_for_each_of_its_experts():
    x = torch.eye(2, dtype=torch.float64)
    routing = make_token([[0, 1], [1, -1]], 2)
    means = torch.stack([x[0], x.mean(0)])
    cosines = F.normalize(torch.eye(2).double()) @ F.normalize(means, dim=-1).T
    expected = F.cross_entropy(cosines, torch.arange(2))
    result = losses.prototype_contrast(routing, x, torch.eye(2).double(), temperature=1.0)
    torch.testing.assert_close(result, expected)


def test_prototype_contrast_is_zero_with_fewer_than_two_used_experts():
    x = torch.randn(3, 4, dtype=torch.float64)
    prototypes = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    loss = losses.prototype_contrast(make_token([[0], [0], [0]], 2), x, prototypes)
    loss.backward()
    assert loss.item() == 0
    assert (prototypes.grad == 0).all()


def test_prototype_contrast_needs_clusters():
    dense = Routing(torch.full((2, 2), 0.5), 2)
    with pytest.raises(ArgumentError, match="token layout"):
        losses.prototype_contrast(dense, torch.eye(2), torch.eye(2))


def test_bce_correct_matches_the_formula():
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    hit = torch.tensor([[True, False]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert losses.bce_correct(logits, hit).item() == pytest.approx(expected)


def test_membership_of_every_layout():
    token = make_token([[1, 0], [2, -1]], 3)
    assert losses.membership(token).tolist() == [[True, True, False], [False, False, True]]
    expert = Routing(
        torch.ones(1, 2, 1), 2, torch.tensor([[[2], [-1]]]), probs=torch.full((1, 3, 2), 0.5),
        layout="expert",
    )  # fmt: skip
    assert losses.membership(expert).tolist() == [[False, False], [False, False], [True, False]]
    dense = Routing(torch.tensor([[0.0, 1.0]]), 2)
    assert losses.membership(dense).tolist() == [[False, True]]
    slot = torch.full((1, 2, 2, 1), 0.5)
    assert losses.membership(Routing(slot, 2, dispatch=slot, layout="slot")).all()


def test_membership_skips_padding():
    routing = make_token([[0], [-1]], 2, valid=torch.tensor([True, False]))
    assert losses.membership(routing).tolist() == [[True, False], [False, False]]


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    check = torch.autograd.gradcheck
    assert check(losses.consistency, (draw(3, 4), draw(3, 4)))
    assert check(losses.orthogonality, draw(3, 5))
    assert check(losses.output_diversity, draw(2, 3, 4))
    routing = make_token([[0], [1], [1], [3]], 4)
    assert check(lambda x, c: losses.prototype_contrast(routing, x, c), (draw(4, 3), draw(4, 3)))
    hit = torch.tensor([[1, 0], [0, 0], [1, 1]])
    assert check(lambda logits: losses.bce_correct(logits, hit), draw(3, 2))
