"""SNR: hard concrete switches."""

import math

import pytest
import torch
from sample_rankers import batch_of, build

from moeapps.errors import UnknownNameError


def test_aver_with_open_switches_is_a_sum():
    model, batch = build("snr_aver").eval(), batch_of(6)
    with torch.no_grad():
        for link in model.connections:
            link.log_alpha.fill_(50.0)
    _, aux = model(batch, return_aux=True)
    for level in aux.levels:
        expected = level.experts.sum(1, keepdim=True).expand_as(level.mixed)
        torch.testing.assert_close(level.mixed, expected)


def test_trans_equals_the_formula():
    model, batch = build("snr_trans").double().eval(), batch_of(6, dtype=torch.float64)
    with torch.no_grad():
        for link in model.connections:
            link.log_alpha.normal_()
    _, aux = model(batch, return_aux=True)
    for link, level in zip(model.connections, aux.levels, strict=True):
        z = (link.log_alpha.sigmoid() * 1.2 - 0.1).clamp(0, 1)
        for i in range(len(z)):
            expected = sum(
                z[i, j] * level.experts[:, j] @ link.weight[i, :, j].T for j in range(z.shape[1])
            )
            torch.testing.assert_close(level.mixed[:, i], expected)


def test_closed_switches_pass_nothing_on():
    model, batch = build("snr_trans").eval(), batch_of(6)
    with torch.no_grad():
        model.connections[-1].log_alpha[0].fill_(-50.0)
    _, aux = model(batch, return_aux=True)
    assert not aux.levels[-1].mixed[:, 0].any()
    assert aux.levels[-1].mixed[:, 1].any()


def test_switches_are_drawn_anew_in_training_and_fixed_in_evaluation():
    link = build("snr_trans").connections[0]
    torch.manual_seed(0)
    draws = torch.stack([link.switches() for _ in range(4000)])
    assert (draws[0] != draws[1]).any()
    link.eval()
    assert torch.equal(link.switches(), link.switches())
    # P(z > 0) at log alpha = 0, and the share of exact zeros and ones that stretching makes
    open_share = (draws > 0).float().mean()
    expected = 1 / (1 + math.exp(0.9 * math.log(0.1 / 1.1)))
    assert float(open_share) == pytest.approx(expected, abs=0.01)
    assert float((draws == 1).float().mean()) == pytest.approx(1 - expected, abs=0.01)


def test_the_penalty_is_the_expected_number_of_open_switches():
    model = build("snr_trans", l0_weight=0.01)
    torch.manual_seed(0)
    counts = [sum((link.switches() > 0).sum() for link in model.connections) for _ in range(2000)]
    mean = torch.stack(counts).float().mean()
    penalty = model.penalty(torch.zeros(1, 3))
    assert float(penalty.detach()) == pytest.approx(0.01 * float(mean), rel=0.02)


def test_unknown_connections_are_named():
    with pytest.raises(UnknownNameError, match="trans"):
        build("snr_trans", connection="transs")
