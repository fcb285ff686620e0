"""SADE's loss against values worked out by hand, and its weights for known experts."""

import math

import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError
from moeapps.vision.longtail import sade
from moeapps.vision.longtail.aggregate import WeightedLogits
from moeapps.vision.longtail.datamodules import LongTailData
from moeapps.vision.longtail.sade import SADE, reversed_prior

COUNTS = [6, 1, 3]  # pi = .6, .1, .3 and reversed .1, .6, .3


def test_reversed_prior_exchanges_the_ranks():
    prior = torch.tensor([0.1, 0.4, 0.3, 0.2])
    torch.testing.assert_close(reversed_prior(prior), torch.tensor([0.4, 0.1, 0.2, 0.3]))


def test_three_terms_by_hand():
    model = SADE(3, COUNTS, backbone="resnet8")
    aux = {"logits": torch.zeros(2, 3, 3)}
    parts = model.loss_parts(aux, torch.tensor([0, 1]), epoch=1)
    assert float(parts["forward"]) == pytest.approx(math.log(3))
    # softmax(log pi) = pi
    assert float(parts["uniform"]) == pytest.approx(-(math.log(0.6) + math.log(0.1)) / 2)
    # pi / reversed^2 = 60, .1 / .36, .3 / .09
    odds = torch.tensor([60, 0.1 / 0.36, 0.3 / 0.09])
    expected = -(odds / odds.sum()).log()[:2].mean()
    assert float(parts["backward"]) == pytest.approx(float(expected), rel=1e-5)
    total = model.loss(aux, torch.tensor([0, 1]), epoch=1)
    torch.testing.assert_close(total, sum(parts.values()))


def test_third_expert_has_lambda_one_plus_tau_for_an_exponential_profile():
    counts = [81, 27, 9, 3, 1]
    model = SADE(5, counts, backbone="resnet8", tau=2.0)
    z, target = torch.randn(4, 3, 5), torch.tensor([0, 4, 2, 1])
    prior = model.log_prior
    expected = nn.functional.cross_entropy(z[:, 2] + 3 * prior, target)
    torch.testing.assert_close(
        model.loss_parts({"logits": z}, target, epoch=1)["backward"], expected
    )


def test_loss_gradient():
    model = SADE(3, COUNTS, backbone="resnet8")
    z = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 1])
    assert torch.autograd.gradcheck(lambda z: model.loss({"logits": z}, target, 1), z)


def test_other_than_three_experts_is_refused():
    with pytest.raises(ArgumentError, match="num_experts=1"):
        SADE(3, COUNTS, num_experts=1)


class Known(nn.Module):
    """Bayes experts with lambda 0, 1 and 3 for Gaussian classes around the unit vectors."""

    num_experts = 3

    def __init__(self, prior):
        super().__init__()
        self.precision = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("log_prior", prior.log())

    def forward(self, images, return_aux=False):
        assert not self.training
        likelihood = self.precision * images.flatten(1)
        shifts = torch.tensor([1.0, 0.0, -2.0]).unsqueeze(1) * self.log_prior
        logits = likelihood.unsqueeze(1) + shifts
        return logits.mean(1), {"logits": logits}


def two_views(test_prior, seed=0, images=512):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(test_prior, images, replacement=True, generator=generator)
    noise = torch.randn(2, images, len(test_prior), generator=generator)
    first, second = torch.eye(len(test_prior))[labels] + 0.5 * noise
    return list(zip(first.split(128), second.split(128), strict=True))


PRIOR = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])


def test_weights_move_to_the_expert_of_the_test_distribution():
    model = Known(PRIOR).train()
    backward = sade.test_time_weights(model, two_views(PRIOR.flip(0))).weights
    forward = sade.test_time_weights(model, two_views(PRIOR)).weights
    assert backward.argmax() == 2
    assert forward.argmax() == 0
    assert backward[2] > 0.5 > forward[2]
    assert model.training
    assert model.precision.grad is None


def test_weights_become_the_aggregator_and_sum_to_one():
    aggregator = sade.test_time_weights(Known(PRIOR), two_views(PRIOR), epochs=1)
    assert isinstance(aggregator, WeightedLogits)
    assert float(aggregator.weights.sum()) == pytest.approx(1)
    logits = torch.randn(4, 3, 5)
    expected = (aggregator.weights.view(1, 3, 1) * logits).sum(1)
    torch.testing.assert_close(aggregator(logits), expected)


def test_learning_stops_once_a_weight_is_small_and_tells_every_epoch():
    seen = []
    sade.test_time_weights(
        Known(PRIOR),
        two_views(PRIOR.flip(0)),
        epochs=50,
        lr=1.0,
        progress=lambda *args: seen.append(args),
    )
    assert [epoch for epoch, _ in seen] == list(range(1, len(seen) + 1))
    assert 1 <= len(seen) < 50
    assert min(seen[-1][1]) < 0.05
    assert all(min(weights) >= 0.05 for _, weights in seen[:-1])


def test_first_step_is_the_gradient_of_the_cosine():
    views = two_views(PRIOR, images=64)
    model = Known(PRIOR).eval()
    v = torch.zeros(3, requires_grad=True)
    first, second = (
        (v.softmax(0).view(1, 3, 1) * model(view)[1]["logits"]).sum(1).softmax(-1)
        for view in views[0]
    )
    (gradient,) = torch.autograd.grad(-torch.cosine_similarity(first, second).mean(), v)
    got = sade.test_time_weights(model, views, epochs=1, momentum=0.0, weight_decay=0.0)
    torch.testing.assert_close(got.weights, (v - 0.1 * gradient).softmax(0).detach())


def test_batches_may_be_mappings():
    pairs = two_views(PRIOR)
    named = [{"image": first, "strong": second} for first, second in pairs]
    by_name = sade.test_time_weights(Known(PRIOR), named, epochs=1)
    by_place = sade.test_time_weights(Known(PRIOR), pairs, epochs=1)
    assert torch.equal(by_name.weights, by_place.weights)


@pytest.mark.parametrize("views", [[], [(torch.full((4, 5), math.nan),) * 2]])
def test_nothing_to_learn_from_is_an_error(views):
    with pytest.raises(ArgumentError, match="no image that an expert could answer in epoch 1"):
        sade.test_time_weights(Known(PRIOR), views)


def test_images_that_no_expert_answers_are_left_out():
    first, second = two_views(PRIOR, images=64)[0]
    clean = sade.test_time_weights(Known(PRIOR), [(first[:32], second[:32])])
    first[32:] = math.nan
    dirty = sade.test_time_weights(Known(PRIOR), [(first, second)])
    torch.testing.assert_close(dirty.weights, clean.weights)


def test_a_real_model_is_left_as_it_was():
    model = SADE(3, COUNTS, backbone="resnet8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pair = (torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16))
    sade.test_time_weights(model, [pair], epochs=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_every_epoch_draws_other_views():
    pytest.importorskip("sklearn", reason='needs pip install "moeapps[vision]"')
    data = LongTailData("digits-lt", batch_size=250)
    data.setup()
    model = SADE(10, data.class_counts, backbone="resnet8", in_channels=1)
    seen = []
    model.backbone.trunk.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    pairs = data.view_pairs()
    sade.test_time_weights(model, pairs, epochs=2, stop_below=0.0)
    first, second = seen[:: 2 * len(pairs)]  # the first view of the first batch
    assert not torch.equal(first, second)
