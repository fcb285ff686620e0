import copy

import pytest
import torch

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.vision.longtail.early_exit import Sequential
from moeapps.vision.longtail.expert_assignment import (
    ExpertAssignment,
    assignment_loss,
    assignment_targets,
    balanced_batches,
    fit_expert_assignment,
)
from moeapps.vision.longtail.ride import RIDE


def test_targets_ask_for_a_later_expert_that_mends_the_mean():
    logits = torch.tensor(
        [
            [[2.0, 0.0], [0.0, 3.0], [0.0, 9.0]],  # means say 0 1 1
            [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]],  # 0 0 0
            [[0.0, 2.0], [9.0, 0.0], [0.0, 9.0]],  # 1 0 1
            [[2.0, 0.0], [0.0, 1.0], [0.0, 9.0]],  # 0 0 1
        ]
    )
    target = torch.tensor([1, 1, 1, 1])
    assert assignment_targets(logits, target).tolist() == [
        [True, False],
        [False, False],
        [False, True],
        [True, True],
    ]


def test_score_by_hand():
    rule = ExpertAssignment(2, num_experts=2, num_classes=3, top_n=2, hidden=1)
    with torch.no_grad():
        rule.project[0].weight.copy_(torch.tensor([[1.0, 1.0]]))
        rule.project[0].bias.zero_()
        rule.decide.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
        rule.decide.bias.fill_(0.1)
    score = rule.score(torch.tensor([[[1.0, 4.0, 2.0]]]), torch.tensor([[3.0, 4.0]]))
    assert score.tolist() == pytest.approx([0.5 * 4 - 2 + 2 * 1.4 + 0.1])


def test_loss_weighs_images_that_should_go_on():
    rule = ExpertAssignment(2, num_experts=2, num_classes=2)
    for parameter in rule.parameters():
        torch.nn.init.zeros_(parameter)
    logits = torch.tensor([[[2.0, 0.0], [0.0, 3.0]], [[2.0, 0.0], [2.0, 0.0]]])
    loss = assignment_loss(rule, logits, torch.ones(2, 2, 2), torch.tensor([1, 0]), 100.0)
    assert float(loss.detach()) == pytest.approx(0.693147 * 101 / 2, abs=1e-4)


def test_the_last_layer_is_shared_by_the_experts():
    rule = ExpertAssignment(8, num_experts=4, num_classes=100)
    assert len(rule.project) == 3
    assert rule.decide.in_features == 30 + 16


def test_balanced_batches_draw_classes_alike_and_repeat_with_the_seed():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    batches = balanced_batches(labels, batch_size=500, epochs=3)
    drawn = torch.bincount(labels[torch.cat(batches)], minlength=3) / 3000
    assert len(batches) == 6
    assert drawn.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)
    again = balanced_batches(labels, batch_size=500, epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def _trained():
    """A model whose first expert fails on dark images, which the others know."""
    torch.manual_seed(0)
    model = RIDE(
        2,
        [80, 20],
        backbone="resnet8",
        num_experts=2,
        backbone_args={"widths": [4, 6, 8]},
        drw_epoch=None,
    )
    y = torch.arange(64) % 2
    images = torch.randn(64, 3, 8, 8) + (2 * y - 1).view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        logits = model(images, return_aux=True)[1]["logits"]
        torch.nn.functional.cross_entropy(logits[:, 1], y).backward()
        optimizer.step()
    return model.eval(), images, y


def test_fitting_trains_the_heads_only_and_exits_early():
    model, images, y = _trained()
    before = copy.deepcopy(model.state_dict())
    order = balanced_batches(y, batch_size=32, epochs=20)
    aggregate = fit_expert_assignment(
        model, ((images[i], y[i]) for i in order), num_steps=len(order), lr=0.1
    )
    assert isinstance(model.aggregate, Sequential)
    assert aggregate is model.aggregate
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)
    with torch.no_grad(), gating.record(model) as record:
        output = model(images)
    logits, _ = model.backbone(images)
    first = (logits[:, 0].argmax(-1) == y).double().mean()
    assert (output.argmax(-1) == y).double().mean() > first
    assert 1 < float(record.routings["aggregate.inner"][0].mean_active()) <= 2


def test_one_expert_has_nothing_to_assign():
    with pytest.raises(ArgumentError, match="at least two"):
        ExpertAssignment(8, num_experts=1, num_classes=3)


def test_the_rule_needs_features():
    rule = ExpertAssignment(8, num_experts=2, num_classes=3)
    with pytest.raises(ArgumentError, match="logits and features"):
        Sequential(rule)(torch.zeros(1, 2, 3))


def test_heads_decide_in_half_precision():
    model = RIDE(4, [8, 4, 2, 1], backbone="resnet8").eval()
    torch.manual_seed(0)
    rule = ExpertAssignment(48, num_experts=3, num_classes=4)
    model.aggregate = Sequential(rule)
    images = torch.randn(4, 3, 16, 16)
    output = model.half()(images.half())
    assert output.shape == (4, 4)
    assert output.isfinite().all()
