"""TLC against values worked out by hand: terms, engagement, sharing, early exit."""

import math

import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import ArgumentError
from moeapps.gating import record
from moeapps.vision.longtail.evidence import evidential_kl, log_engagement
from moeapps.vision.longtail.losses import ldam_margins
from moeapps.vision.longtail.tlc import TLC

COUNTS = [16, 1]  # margins .25, .5


def model_of(**options):
    return TLC(len(COUNTS), COUNTS, backbone="resnet8", **options)


def test_first_term_is_ldam_cross_entropy_written_as_evidence():
    model = model_of(num_experts=1)
    z = torch.tensor([[[12.0, 3.0]], [[-2.0, 4.0]]])
    target = torch.tensor([0, 1])
    got = model.loss_parts({"logits": z}, target, epoch=1)["ldam"]
    # log S - log alpha_y with alpha = exp(z - 30 m): margins of 7.5 and 15
    less = torch.tensor([[12 - 7.5, 3.0], [-2.0, 4 - 15.0]])
    alpha = less.double().exp()
    expected = (alpha.sum(1).log() - alpha[[0, 1], target].log()).mean()
    assert float(got) == pytest.approx(float(expected), rel=1e-5)


def test_terms_of_one_image_by_hand():
    model = model_of(num_experts=2, diversity=0.01)
    z = torch.tensor([[[8.5, 1.0], [7.5, 0.0]]])
    parts = model.loss_parts({"logits": z}, torch.tensor([0]), epoch=132)
    # margin 7.5: logits (1, 1) and (0, 0)
    assert float(parts["ldam"]) == pytest.approx(2 * math.log(2), rel=1e-5)
    # Dir(1, 1 + e^1) and Dir(1, 2); in two classes KL(Dir(1, a) | flat) = ln a - 1 + 1 / a
    divergence = [math.log(a) - 1 + 1 / a for a in (1 + math.e, 2.0)]
    assert float(parts["evidence"]) == pytest.approx(132 / 13200 * sum(divergence), rel=1e-5)
    # The two experts' probabilities are equal (both logits differ by 7.5), so is their mean's.
    assert float(parts["diversity"]) == pytest.approx(0, abs=1e-7)


def test_evidence_factor_follows_the_reweighting_epoch():
    assert model_of().evidence_epochs == pytest.approx(13200)
    assert model_of(drw_epoch=80).evidence_epochs == pytest.approx(11600)
    assert model_of(evidence_epochs=50.0).evidence_epochs == 50


def test_class_weights_multiply_and_do_not_divide_the_mean():
    model = model_of(num_experts=1, drw_epoch=160, diversity=0.0)
    z = torch.tensor([[[7.5, 0.0]], [[0.0, 15.0]]])  # after margins (0, 0): log 2 each
    target = torch.tensor([0, 1])
    before = model.loss_parts({"logits": z}, target, epoch=160)["ldam"]
    after = model.loss_parts({"logits": z}, target, epoch=161)["ldam"]
    assert float(before) == pytest.approx(math.log(2))
    # weights sum to C = 2, so their mean over one image of each class is 1
    assert float(after) == pytest.approx(math.log(2))
    only_rare = model.loss_parts({"logits": z[1:]}, target[1:], epoch=161)["ldam"]
    inverse = [1 / (1 - 0.9999**n) for n in COUNTS]
    assert float(only_rare) == pytest.approx(2 * inverse[1] / sum(inverse) * math.log(2), rel=1e-4)


def test_only_engaged_images_train_the_later_experts():
    model = model_of(num_experts=2)
    # Image 0 leaves doubt u = 2 / (2 + 2) = .5, image 1 u = 2 / 200: .02 of the largest.
    z = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[197.0, 1.0], [0.0, 0.0]]]).log()
    z[:, 1] = 0.0
    engaged = model.engaged(z)
    assert engaged.tolist() == [[True, True], [True, False]]
    target = torch.tensor([0, 0])
    both = model.loss_parts({"logits": z}, target, epoch=1)
    less = F.cross_entropy(z[:, 0] - torch.tensor([7.5, 0]), target)
    second = F.cross_entropy(z[:1, 1] - torch.tensor([7.5, 0]), target[:1])
    assert float(both["ldam"]) == pytest.approx(float(less + second), rel=1e-5)


def test_threshold_is_strict():
    model = model_of(num_experts=2, engage_above=0.5)
    u = torch.tensor([0.8, 0.4])  # exactly half of the largest
    z = torch.zeros(2, 2, 2)
    z[:, 0] = (1 / u - 1).log().unsqueeze(1)  # evidence e, e with 2 / (2 e + 2) = u
    assert model.engaged(z)[:, 1].tolist() == [True, False]


def test_share_zero_engages_even_images_whose_engagement_underflows():
    model = model_of(num_experts=6, engage_above=0.0)
    z = torch.zeros(2, 6, 2)
    z[0, :, 0] = 30.0
    assert log_engagement(z)[0, 5].exp() == 0
    assert model.engaged(z).all()
    with pytest.raises(ArgumentError, match="engage_above=1"):
        model_of(engage_above=1)


def test_diversity_term_compares_with_the_soft_output():
    model = model_of(num_experts=2, eta=0.2)
    z = torch.randn(5, 2, 2)
    parts = model.loss_parts({"logits": z}, torch.tensor([0, 1, 0, 1, 0]), epoch=1)
    w = log_engagement(z)[:, :2].exp()
    out = ((w / 0.2).softmax(1).unsqueeze(-1) * z).sum(1)
    engaged = w > 0.54 * w.amax(0)
    expected = 0.0
    for k in range(2):
        kl = F.kl_div(z[:, k].log_softmax(-1), out.softmax(-1), reduction="none").sum(-1)
        expected -= 0.01 * float(kl[engaged[:, k]].mean())
    assert float(parts["diversity"]) == pytest.approx(expected, rel=1e-4)


def test_loss_is_float32_and_finite_under_half_precision_at_the_largest_logits():
    model = model_of()
    z = torch.full((4, 3, 2), -30.0, dtype=torch.bfloat16)
    z[:, :, 0] = 30.0
    z.requires_grad_()
    loss = model.loss({"logits": z}, torch.tensor([0, 1, 1, 0]), epoch=200)
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_gradients():
    model = model_of(diversity=0.0)  # the mean that experts are compared with has no gradient
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda z: model.loss({"logits": z}, target, 170), z)


def test_evidence_term_sees_the_margin():
    model = model_of(num_experts=1)
    z, target = torch.randn(4, 1, 2), torch.tensor([0, 1, 0, 1])
    margins = 30 * ldam_margins(torch.tensor(COUNTS)) * F.one_hot(target, 2)
    expected = evidential_kl(z[:, 0] - margins, target).mean() * 7 / model.evidence_epochs
    got = model.loss_parts({"logits": z}, target, epoch=7)["evidence"]
    torch.testing.assert_close(got, expected)


def test_experts_share_only_the_stem_of_the_small_network():
    trunk = model_of().backbone.trunk
    assert sum(p.numel() for p in trunk.parameters()) == 3 * 16 * 9 + 2 * 16
    more = model_of(backbone_args={"shared_stages": 1}).backbone.trunk
    assert sum(p.numel() for p in more.parameters()) > 3 * 16 * 9 + 2 * 16


def test_output_does_not_depend_on_the_batch_unless_asked():
    images = torch.randn(5, 3, 16, 16)
    model = model_of().eval()
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]), rtol=1e-4, atol=1e-4)
    released = model_of(batch_normalised=True).eval()
    assert not torch.allclose(released(images)[2:3], released(images[2:3]), atol=1e-2)


def test_released_weights_by_hand():
    model = model_of(num_experts=2, batch_normalised=True, eta=0.2)
    z = torch.zeros(2, 2, 2)
    z[0, 0], z[1, 0] = 0.0, math.log(3)  # u = 1/2 and 1/4
    z[:, 1] = torch.tensor([1.0, -1.0])
    # expert 1: w = 1, 1 -> 1/2 each; expert 2: e^2.5 and e^1.25
    q = [math.exp(2.5), math.exp(1.25)]
    expected = torch.tensor([[0.0, 0.0], [math.log(3) / 2] * 2])
    expected += torch.tensor([[q[0]], [q[1]]]) / sum(q) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(model.aggregate(z), expected)


def test_engaging_by_doubt_really_skips_and_equals_the_masked_form():
    torch.manual_seed(0)
    model = model_of().eval()
    images = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        _, aux = model(images, return_aux=True)
    doubts = log_engagement(aux["logits"])[:, 1].exp()
    model.engage(float(doubts.median()))
    rows = []
    for body in model.backbone.bodies:
        body.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    with record(model) as rec, torch.no_grad():
        output = model(images)
    assert rows[0] == 8
    assert rows[1] == int((doubts > doubts.median()).sum())
    torch.testing.assert_close(output, model.aggregate(aux["logits"]), rtol=1e-4, atol=1e-4)
    (routing,) = next(iter(rec.routings.values()))
    assert (routing.weights > 0).sum(0).tolist()[:2] == rows[:2]
    model.engage(None)
    torch.testing.assert_close(model(images), model.soft(aux["logits"]), rtol=1e-4, atol=1e-4)


def test_combined_conflict_reaches_loss_and_output():
    z = torch.randn(6, 5, 2)
    one, two = model_of(num_experts=5), model_of(num_experts=5, conflict="combined")
    assert not torch.allclose(one.aggregate(z), two.aggregate(z))
    two.engage(0.1)
    assert two.aggregate.rule.conflict == two.aggregate.inner.conflict == "combined"


def test_engaging_above_no_doubt_is_refused():
    with pytest.raises(ArgumentError, match="threshold=0"):
        model_of().engage(0.0)
