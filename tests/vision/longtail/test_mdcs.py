"""MDCS against values worked out by hand: diversity, consistency, sampling and its weight."""

import math

import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import ArgumentError
from moeapps.vision.longtail.mdcs import MDCS, consistency_kl

COUNTS = [8, 2]


def model_of(**options):
    return MDCS(len(COUNTS), COUNTS, backbone="resnet8", **options)


def test_experts_are_summed_over_both_views_by_hand():
    parts = model_of().loss_parts({"logits": torch.zeros(2, 3, 2)}, torch.tensor([1]), epoch=1)
    # lambda -.5, 1, 2.5: odds of rare to frequent are 4^.5, 4^-1, 4^-2.5
    expected = sum(math.log(1 + 4**lam) for lam in (-0.5, 1, 2.5))
    assert float(parts["adjusted_cross_entropy"]) == pytest.approx(expected, rel=1e-5)


def test_consistency_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)
    weak, strong = torch.tensor([[[3.0, 1.0]]]).log(), torch.zeros(1, 1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(consistency_kl(weak, strong, torch.tensor([0]))) == pytest.approx(expected)


def test_mean_is_over_the_images_that_each_expert_gets_right():
    weak, strong = torch.randn(2, 6, 3, 4).unbind(0)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    weak[0, :, 0] += 10  # right for all experts
    weak[1, 1, 1] += 10
    got = consistency_kl(weak, strong, target)
    for k in range(3):
        right = weak[:, k].argmax(1) == target
        expected = F.kl_div(
            strong[right, k].log_softmax(-1), weak[right, k].softmax(-1), reduction="batchmean"
        )
        torch.testing.assert_close(got[k], expected)


def test_selection_and_divergence_use_adjusted_logits():
    # Raw logits prefer class 1; the third expert's adjustment of 2.5 ln 4 turns that around.
    model = model_of()
    logits = torch.tensor([0.0, 1.0]).expand(2, 3, 2).clone()
    logits[1, 2] = torch.tensor([2.0, 0.0])
    got = model.loss_parts({"logits": logits}, torch.tensor([0]), epoch=20)["consistency"]
    prior = torch.tensor([0.8, 0.2]).log()
    expected = 0.0
    for k, lam in enumerate((-0.5, 1.0, 2.5)):
        weak, strong = logits[:, k] + lam * prior
        if weak.argmax() == 0:
            expected += float(F.kl_div(strong.log_softmax(-1), weak.softmax(-1), reduction="sum"))
    assert expected > 0
    assert float(got) == pytest.approx(0.6 * expected, rel=1e-5)


def test_weight_ramps_over_twenty_epochs():
    model = model_of()
    aux = {"logits": torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(0))}
    target = torch.tensor([0, 0, 1, 1])
    at = {
        epoch: float(model.loss_parts(aux, target, epoch)["consistency"])
        for epoch in (1, 10, 20, 400)
    }
    assert at[20] > 0
    assert at[1] == pytest.approx(at[20] / 20)
    assert at[10] == pytest.approx(at[20] / 2)
    assert at[400] == at[20]


def test_no_image_right_is_zero_and_stays_in_the_graph():
    z = torch.tensor([[0.0, 9.0]]).expand(4, 3, 2).clone().requires_grad_()
    parts = model_of().loss_parts({"logits": z}, torch.tensor([0, 0]), epoch=20)
    assert not parts["consistency"].detach().any()
    (gradient,) = torch.autograd.grad(parts["consistency"], z)
    assert not gradient.any()


def test_teacher_gets_no_gradient():
    weak = torch.randn(5, 3, 4, requires_grad=True)
    strong = torch.randn(5, 3, 4, requires_grad=True)
    consistency_kl(weak, strong, weak[:, 0].argmax(-1)).sum().backward()
    assert weak.grad is None
    assert strong.grad.any()


def test_gradients():
    z = torch.randn(6, 3, 2, dtype=torch.float64)
    target = z[:3, 1].argmax(-1)
    strong = z[3:].clone().requires_grad_()
    model = model_of()

    def loss(strong):
        return model.loss({"logits": torch.cat([z[:3], strong])}, target, epoch=30)

    assert torch.autograd.gradcheck(loss, strong)


def test_one_view_is_refused():
    with pytest.raises(ArgumentError, match="views=2"):
        model_of().loss({"logits": torch.zeros(4, 3, 2)}, torch.zeros(4, dtype=torch.int64), 1)


def test_one_lambda_per_expert():
    with pytest.raises(ArgumentError, match="3 values for 2 experts"):
        model_of(num_experts=2)
    one = model_of(num_experts=1, lam=1.0)
    aux = {"logits": torch.randn(4, 1, 2)}
    assert one.loss(aux, torch.tensor([0, 1]), epoch=1).isfinite()


def test_inference_is_the_plain_mean():
    model = model_of().eval()
    output, aux = model(torch.randn(3, 3, 16, 16), return_aux=True)
    torch.testing.assert_close(output, aux["logits"].mean(1))
