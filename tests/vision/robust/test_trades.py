import math

import pytest
import torch
import torch.nn.functional as F

from moeapps.vision.robust.advmoe import AdvMoE
from moeapps.vision.robust.trades import adversary, divergence, group_loss, trades_loss

ARGUMENTS = {
    "backbone": "small_cnn",
    "in_channels": 1,
    "router_depth": 8,
    "router_widths": [4, 6, 8],
}


def test_divergence_has_the_clean_distribution_as_target():
    clean, moved = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(moved, clean).item() == pytest.approx(expected, rel=1e-5)


def test_trades_of_known_numbers():
    clean, moved = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    label = torch.tensor([1])
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    loss = trades_loss(clean, moved, label, beta=6.0)
    assert loss.item() == pytest.approx(-math.log(0.75) + 6 * kl, rel=1e-5)


def test_router_loss_of_known_numbers():
    scores = torch.tensor([[[0.0, math.log(3.0)]], [[0.0, 0.0]]])
    loss = group_loss(scores, scores, torch.tensor([1, 0]), alpha=6.0, beta=6.0)
    assert loss.item() == pytest.approx(3 * (-math.log(0.75) - math.log(0.5)), rel=1e-5)


@pytest.mark.parametrize("target", ["both", "network", "router"])
def test_adversary_moves_what_it_attacks_within_bounds(target):
    torch.manual_seed(0)
    model = AdvMoE(10, **ARGUMENTS).train()
    images = torch.rand(16, 1, 8, 8)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = adversary(
        model, images, epsilon=0.1, target=target, generator=torch.Generator().manual_seed(0)
    )
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not found.requires_grad
    assert ((found - images).abs() <= 0.1 + 1e-6).all()
    assert ((found >= 0) & (found <= 1)).all()
    noise = (images + 0.1 * torch.randn(images.shape).sign()).clamp(0, 1)
    model.eval()

    def moves(x):
        router = divergence(model.scores(x), model.scores(images))
        network = divergence(model(x, route=0), model(images, route=0))
        return {"router": router, "network": network, "both": router + network}[target]

    with torch.no_grad():
        assert moves(found) > moves(noise)


def test_label_modulo_n_is_a_group():
    labels = torch.arange(10)
    scores = torch.randn(10, 1, 2)
    expected = 6 * F.cross_entropy(scores[:, 0], labels % 2)
    loss = group_loss(scores, scores, (torch.arange(10) % 2)[labels])
    torch.testing.assert_close(loss, expected)
