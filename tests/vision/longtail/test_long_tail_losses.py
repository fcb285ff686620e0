"""Every formula against numbers computed apart from this library, in float64."""

import pytest
import torch
import torch.nn.functional as F

from moeapps.vision.longtail.aggregate import MeanLogits, PriorCorrected
from moeapps.vision.longtail.cross_entropy import CrossEntropy
from moeapps.vision.longtail.ldam import LDAM
from moeapps.vision.longtail.logit_adjustment import BalancedSoftmax, LogitAdjustment
from moeapps.vision.longtail.losses import (
    diversity_kl,
    drw_weights,
    ldam_cross_entropy,
    ldam_margins,
    log_prior,
    logit_adjusted_cross_entropy,
    temperatures,
    with_margins,
)
from moeapps.vision.longtail.ride import RIDE, distillation_kl

COUNTS = torch.tensor([80, 15, 5])
LOGITS = torch.tensor([[[2.0, 0.0, -1.0], [1.0, 1.0, 0.0]], [[0.5, -0.5, 1.5], [0.0, 2.0, 1.0]]])
TARGET = torch.tensor([0, 2])
AUX = {"logits": LOGITS}
SMALL = {"backbone": "resnet8", "backbone_args": {"widths": [4, 6, 8]}}


def test_margins_give_the_rarest_class_one_half():
    assert ldam_margins(COUNTS).tolist() == pytest.approx([0.25, 0.379918, 0.5], abs=1e-6)


def test_weights_by_effective_number_sum_to_the_number_of_classes():
    weights = drw_weights(COUNTS)
    assert weights.tolist() == pytest.approx([0.134794, 0.716570, 2.148636], abs=1e-6)
    assert float(weights.sum()) == pytest.approx(3)


def test_temperatures_are_one_at_the_most_frequent_class():
    assert temperatures(COUNTS).tolist() == pytest.approx([1.0, 0.908879, 0.894860], abs=1e-6)


@pytest.mark.parametrize(
    ("lam", "value"), [(0, 0.288726), (1, 1.007439), (2, 2.286698), (-0.5, 0.285162)]
)
def test_logit_adjusted_cross_entropy(lam, value):
    loss = logit_adjusted_cross_entropy(LOGITS[:, 0], TARGET, log_prior(COUNTS), lam)
    assert float(loss) == pytest.approx(value, abs=1e-5)
    raw = logit_adjusted_cross_entropy(LOGITS[:, 0], TARGET, COUNTS.log(), lam)
    torch.testing.assert_close(raw, loss)


@pytest.mark.parametrize(("epoch", "value"), [(160, 2.274089), (161, 3.003848)])
def test_ldam_before_and_after_the_weights(epoch, value):
    model = LDAM(3, COUNTS, num_experts=2, scale=2.0, **SMALL)
    assert float(model.loss(AUX, TARGET, epoch)) == pytest.approx(value, abs=1e-5)


def test_margin_is_multiplied_by_the_scale():
    moved = with_margins(torch.zeros(1, 3), torch.tensor([2]), ldam_margins(COUNTS), scale=30)
    assert moved.tolist() == [[0.0, 0.0, -15.0]]
    assert LDAM(3, COUNTS, classifier="linear", **SMALL).scale == 1


def test_ldam_weights_divide_by_their_sum():
    weight, margins = torch.tensor([1.0, 1.0, 9.0]), torch.zeros(3)
    loss = ldam_cross_entropy(LOGITS[:, 0], TARGET, margins, weight=weight)
    each = F.cross_entropy(LOGITS[:, 0], TARGET, reduction="none")
    torch.testing.assert_close(loss, (each[0] + 9 * each[1]) / 10)


@pytest.mark.parametrize("method", [LDAM, RIDE])
def test_weighted_losses_keep_double_precision(method):
    model = method(3, COUNTS, num_experts=2, scale=2.0, **SMALL)
    loss = model.loss({"logits": LOGITS.double()}, TARGET, epoch=161)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss.float(), model.loss(AUX, TARGET, epoch=161))


def test_diversity_of_every_image_and_expert():
    expected = torch.tensor([[0.096999, 0.119630], [0.188130, 0.266542]])
    torch.testing.assert_close(diversity_kl(LOGITS), expected, atol=1e-5, rtol=0)


def test_diversity_reaches_the_experts_but_not_the_mean():
    logits = LOGITS.clone().requires_grad_()
    diversity_kl(logits)[:, 0].sum().backward()
    assert logits.grad is not None
    assert logits.grad[:, 0].any()
    assert not logits.grad[:, 1].any()


@pytest.mark.parametrize(
    ("epoch", "parts"),
    [(160, (2.274089, 0.335651)), (161, (3.003848, 0.339771))],
)
def test_ride_before_and_after_the_weights(epoch, parts):
    model = RIDE(3, COUNTS, num_experts=2, scale=2.0, **SMALL)
    found = model.loss_parts(AUX, TARGET, epoch)
    assert float(found["ldam"]) == pytest.approx(parts[0], abs=1e-5)
    assert float(found["diversity"]) == pytest.approx(-0.45 * parts[1], abs=1e-5)
    total = parts[0] - 0.45 * parts[1]
    assert float(model.loss(AUX, TARGET, epoch)) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize(("epoch", "value"), [(1, 1.898507), (200, 2.507261)])
def test_collaborative_ride_takes_the_loss_of_the_mean_once_per_expert(epoch, value):
    model = RIDE(3, COUNTS, num_experts=2, scale=2.0, collaborative=True, diversity=0, **SMALL)
    assert float(model.loss(AUX, TARGET, epoch)) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(("mean", "value"), [("student", 0.351827), ("teacher", 0.315276)])
def test_distillation_in_both_directions(mean, value):
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    loss = distillation_kl(LOGITS.mean(1), teacher, 1.5, mean)
    assert float(loss) == pytest.approx(value, abs=1e-5)


def test_reference_scale_multiplies_everything_by_the_experts():
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    aux, options = {**AUX, "teacher": teacher}, {"num_experts": 2, "scale": 2.0, **SMALL}
    plain, scaled = RIDE(3, COUNTS, **options), RIDE(3, COUNTS, reference_scale=True, **options)
    loss = plain.loss(aux, TARGET, 1)
    assert float(loss) == pytest.approx(2.274089 - 0.45 * 0.335651 + 0.351827, abs=1e-5)
    torch.testing.assert_close(scaled.loss(aux, TARGET, 1), 2 * loss)
    torch.testing.assert_close(scaled.loss(AUX, TARGET, 1), plain.loss(AUX, TARGET, 1))


def test_balanced_softmax_is_lambda_one_and_cross_entropy_lambda_zero():
    options = {"num_experts": 2, **SMALL}
    balanced = BalancedSoftmax(3, COUNTS, **options).loss(AUX, TARGET, 1)
    torch.testing.assert_close(
        balanced, sum(F.cross_entropy(LOGITS[:, k] + COUNTS.log(), TARGET) for k in range(2))
    )
    plain = CrossEntropy(3, **options).loss(AUX, TARGET, 1)
    torch.testing.assert_close(
        LogitAdjustment(3, COUNTS, lam=0, **options).loss(AUX, TARGET, 1), plain
    )


def test_post_hoc_adjustment_shifts_the_logits():
    shifted = PriorCorrected(MeanLogits(), COUNTS)(LOGITS)
    torch.testing.assert_close(shifted.softmax(-1), (LOGITS.mean(1) - COUNTS.log()).softmax(-1))
    model = CrossEntropy(3, COUNTS, tau=0.5, **SMALL)
    half = model.aggregate(LOGITS).softmax(-1)
    torch.testing.assert_close(half, (LOGITS.mean(1) - 0.5 * COUNTS.log()).softmax(-1))


@pytest.mark.parametrize("lam", [(1.0,), (0.0, 2.0), (-0.5, 1.0, 2.5), (0.0, 1.0, 3.0)])
def test_mean_lambda_rules_the_ensemble(lam):
    """Experts at the optimum of their losses; x takes 4 values, y 3 classes."""
    prior = torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64)
    likelihood = torch.tensor(
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.4, 0.1], [0.1, 0.1, 0.2, 0.6]], dtype=torch.float64
    )
    joint = (likelihood * prior[:, None]).T  # [x, y]
    logits = torch.zeros(4, len(lam), 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        adjusted = logits + torch.tensor(lam, dtype=torch.float64)[:, None] * prior.log()
        loss = -(joint[:, None] * adjusted.log_softmax(-1)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mean_lam = sum(lam) / len(lam)
    for q in (torch.full((3,), 1 / 3, dtype=torch.float64), prior.flip(0)):
        corrected = PriorCorrected(MeanLogits(), 100 * prior, test_prior=q, lam=mean_lam)
        posterior = (likelihood * q[:, None]).T
        posterior = posterior / posterior.sum(-1, keepdim=True)
        found = corrected.double()(logits.detach()).softmax(-1)
        torch.testing.assert_close(found, posterior, atol=1e-4, rtol=0)
