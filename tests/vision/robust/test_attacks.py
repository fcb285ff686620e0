import sys
import types

import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError, MissingExtraError, UnknownNameError
from moeapps.vision.robust.apgd import APGD
from moeapps.vision.robust.attacks import PGD, frozen, margin
from moeapps.vision.robust.evaluation import evaluate_robustness
from moeapps.vision.robust.suites import AutoAttack, adaptive_attacks, fixed_attacks


class Routed(nn.Module):
    """Pixel 0 decides the route at 0.5; the class is the sign of pixel 1, or its opposite."""

    num_experts = 2

    def scores(self, images):
        lead = 20 * (images[:, 0, 0, 0] - 0.5)
        return torch.stack([-lead, lead], -1).unsqueeze(1)

    def forward(self, images, route="hard", return_scores=False):
        scores = self.scores(images)
        z = images[:, 0, 0, 1] - 0.5
        each = torch.stack([torch.stack([-z, z], -1), torch.stack([z, -z], -1)], 1)
        if isinstance(route, int):
            logits = each[:, route]
        elif route == "soft":
            logits = (scores[:, 0].softmax(-1).unsqueeze(-1) * each).sum(1)
        else:
            logits = each[torch.arange(len(images)), scores[:, 0].argmax(-1)]
        return (logits, scores) if return_scores else logits


def images_and_labels():
    """Far from the class boundary, near that of the router."""
    images = torch.tensor([[0.45, 0.9], [0.45, 0.1], [0.1, 0.9]]).view(3, 1, 1, 2)
    return images, torch.tensor([1, 0, 1])


def test_an_attack_on_the_class_alone_misses_what_the_router_hides():
    images, labels = images_and_labels()
    attacks = {
        "pgd": PGD(0.1, route="detached", restarts=1, steps=10),
        "router": PGD(0.1, goal="router", restarts=1, steps=10),
        "forced": PGD(0.1, goal="forced", restarts=2, steps=10),
    }
    report = evaluate_robustness(Routed(), images, labels, attacks)
    assert report.accuracy() == 1
    assert report.correct["router"].tolist() == [False, False, True]
    assert report.correct["forced"].tolist() == [False, False, True]
    assert report.worst() == pytest.approx(1 / 3)
    assert report.flips("router") == pytest.approx(2 / 3)
    assert "worst case of each image" in report.table()


def test_linear_network_is_attacked_as_far_as_possible():
    class Linear(Routed):
        num_experts = 1

        def forward(self, images, route="hard", return_scores=False):
            z = images[:, 0, 0, 0] - images[:, 0, 0, 1]
            logits = torch.stack([-z, z], -1)
            return (logits, images.new_zeros(len(images), 0, 1)) if return_scores else logits

    images = torch.tensor([[0.62, 0.4], [0.58, 0.4], [0.7, 0.3]]).view(3, 1, 1, 2)
    labels = torch.ones(3, dtype=torch.long)
    for attack in (PGD(0.1), PGD(0.1, goal="margin"), APGD(0.1, steps=10)):
        found = attack(Linear(), images, labels, seed=0)
        assert ((found - images).abs() <= 0.1 + 1e-6).all()
        right = Linear()(found).argmax(-1) == labels
        assert right.tolist() == [True, False, True]  # leads 0.22, 0.18, 0.4 against 0.2


@pytest.mark.parametrize(
    "attack", [*fixed_attacks(0.2, 3).values(), *adaptive_attacks(0.2, 3).values()]
)
def test_attacks_stay_in_bounds_repeat_and_leave_the_model_alone(attack):
    model, (images, labels) = Routed(), images_and_labels()
    model.linear = nn.Linear(2, 2)
    model.train()
    with torch.inference_mode():
        inference = images.clone()
        found = attack(model, inference, labels, seed=3)
    assert torch.equal(found, attack(model, images, labels, seed=3))
    assert ((found >= 0) & (found <= 1)).all()
    assert ((found - images).abs() <= 0.2 + 1e-6).all()
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_frozen_restores_modes_one_by_one():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    with frozen(model):
        assert not model[0].training
        assert not any(p.requires_grad for p in model.parameters())
    assert (model[0].training, model[1].training) == (True, False)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


def test_margin_ignores_the_label_itself():
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [-3.0, 3.0]


def test_the_clean_route_is_asked_for_once():
    model, (images, labels) = Routed(), images_and_labels()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    PGD(0.01, goal="router", restarts=1, steps=5)(model, images, labels)
    assert len(calls) == 2 + 2 * 5  # who is right, the clean route; then gradient and who is right


@pytest.mark.parametrize("attack", [PGD(0.3, goal="forced"), APGD(0.3, steps=9, restarts=3)])
def test_no_image_is_attacked_any_more_once_it_is_wrong(attack):
    model, (images, labels) = Routed(), images_and_labels()
    sizes = []
    model.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    found = attack(model, images, 1 - labels)
    assert torch.equal(found, images)
    assert sizes == [3]
    assert attack(model, images[:0], labels[:0]).shape == (0, 1, 1, 2)


def test_checkpoints_of_apgd():
    assert APGD(steps=100).checkpoints() == [22, 41, 57, 70, 80, 87, 93, 99]


def test_bad_input_says_what_to_do():
    with pytest.raises(UnknownNameError, match="Did you mean 'margin'"):
        PGD(0.1, goal="margn")
    with pytest.raises(ArgumentError, match="positive epsilon"):
        APGD(0.0)
    images, labels = images_and_labels()
    with pytest.raises(ArgumentError, match="Leave normalisation to the network"):
        PGD(0.1)(Routed(), images - 1, labels)
    with pytest.raises(ArgumentError, match="3 images and 2 labels"):
        evaluate_robustness(Routed(), images, labels[:2], {})
    with pytest.raises(ArgumentError, match="labels reach from 1 to 2; the network has classes 0"):
        evaluate_robustness(Routed(), images, labels + 1, {})


def test_a_single_expert_has_nobody_to_be_undecided_with():
    assert "undecided" in adaptive_attacks(num_experts=2, fallback=True)
    assert "undecided" not in adaptive_attacks(num_experts=1, fallback=True)


def test_auto_attack_needs_its_library(monkeypatch):
    images, labels = images_and_labels()
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps torchattacks"):
        AutoAttack(0.1, 2)(Routed(), images, labels)


def test_auto_attack_hands_on_its_arguments(monkeypatch):
    given = {}

    def make(model, **options):
        given.update(options)
        torch.manual_seed(options["seed"])  # as the library does
        return lambda images, labels: images + 0.1

    library = types.SimpleNamespace(AutoAttack=make)
    monkeypatch.setitem(sys.modules, "torchattacks", library)
    images, labels = images_and_labels()
    before = torch.get_rng_state()
    found = AutoAttack(0.1, 2)(Routed(), images, labels, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(found, images + 0.1)
    assert given == {"norm": "Linf", "eps": 0.1, "n_classes": 2, "seed": 5}
