"""Losses per task: masks, weights, missing labels, regression and ordinal levels."""

import math

import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.recsys.losses import MultiTaskLoss, ordinal_loss
from moeapps.recsys.schema import Task

NAN = float("nan")


def rows(seed=0, batch=12, tasks=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, tasks, generator=generator, dtype=torch.float64)
    labels = (torch.rand(batch, tasks, generator=generator) < 0.4).double()
    mask = torch.rand(batch, tasks, generator=generator) < 0.6
    weight = torch.rand(batch, generator=generator, dtype=torch.float64)
    return logits, labels, mask, weight


def test_losses_equal_a_loop_over_rows_and_tasks():
    logits, labels, mask, weight = rows()
    labels[0, 1] = labels[5, 2] = NAN
    tasks = [Task("a", weight=2.0), Task("b"), Task("c", weight=0.5)]
    got = MultiTaskLoss(tasks)(logits, labels, mask=mask, weight=weight)
    for t, task in enumerate(tasks):
        total, count = 0.0, 0
        for i in range(len(logits)):
            if mask[i, t] and not labels[i, t].isnan():
                p = torch.sigmoid(logits[i, t]).item()
                y = labels[i, t].item()
                total -= weight[i].item() * (y * math.log(p) + (1 - y) * math.log(1 - p))
                count += 1
        assert got[t].item() == pytest.approx(task.weight * total / count)


@pytest.mark.parametrize("how", ["mask", "label"])
def test_rows_that_do_not_count_change_neither_loss_nor_gradient(how):
    logits, labels, _, _ = rows(1)
    keep = torch.arange(12) % 3 != 0
    part = logits[keep, :1].clone().requires_grad_()
    MultiTaskLoss(["a"])(part, labels[keep, :1]).sum().backward()
    whole = logits.clone()
    whole[~keep, 0] = 1e6
    whole.requires_grad_()
    given, mask = labels.clone(), torch.ones(12, 3, dtype=torch.bool)
    if how == "mask":
        mask[~keep, 0] = False
    else:
        given[~keep, 0] = NAN
    loss = MultiTaskLoss(["a", "b", "c"])(whole, given, mask=mask)
    loss[0].backward()
    torch.testing.assert_close(whole.grad[keep, 0], part.grad[:, 0])
    assert not whole.grad[~keep].any()
    assert not whole.grad[:, 1:].any()


def test_a_task_without_rows_has_loss_zero_and_a_finite_gradient():
    logits, labels, _, _ = rows(2)
    labels[:, 1] = NAN
    logits.requires_grad_()
    losses = MultiTaskLoss(["a", "b", "c"])(logits, labels)
    losses.sum().backward()
    assert losses[1] == 0
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, 1].any()


def test_mean_over_tasks_divides_by_their_number():
    logits, labels, _, _ = rows(3)
    summed = MultiTaskLoss(["a", "b", "c"])(logits, labels)
    mean = MultiTaskLoss(["a", "b", "c"], reduction="mean_tasks")(logits, labels)
    torch.testing.assert_close(mean * 3, summed)


def test_mixed_task_types_in_any_order():
    logits, labels, _, _ = rows(4, tasks=4)
    labels[:, 0] *= 3.5
    labels[:, 2] = torch.arange(12) % 4
    tasks = [
        Task("price", type="regression"), Task("click"), Task("stars", type="ordinal", levels=4),
        Task("buy"),
    ]  # fmt: skip
    cuts = torch.tensor([-1.0, 0.2, 2.0], dtype=torch.float64)
    got = MultiTaskLoss(tasks).double()(logits, labels, cut_points={"stars": cuts})
    expected = torch.stack(
        [
            F.mse_loss(logits[:, 0], labels[:, 0]),
            F.binary_cross_entropy_with_logits(logits[:, 1], labels[:, 1]),
            ordinal_loss(logits[:, 2], labels[:, 2], cuts).mean(),
            F.binary_cross_entropy_with_logits(logits[:, 3], labels[:, 3]),
        ]
    )
    torch.testing.assert_close(got, expected)


def test_huber_is_linear_far_out():
    labels = torch.tensor([[0.0], [0.0]])
    loss = MultiTaskLoss([Task("x", type="regression")], regression="huber", huber_delta=2.0)
    assert loss(torch.tensor([[1.0], [1.0]]), labels).item() == pytest.approx(0.5)
    assert loss(torch.tensor([[10.0], [10.0]]), labels).item() == pytest.approx(2 * (10 - 1))


def test_ordinal_probabilities_are_a_distribution_over_levels():
    cuts = torch.tensor([-2.0, -1.5, 0.3, 4.0], dtype=torch.float64)
    scores = torch.linspace(-4, 4, 9, dtype=torch.float64)
    levels = torch.arange(5.0, dtype=torch.float64)
    probability = torch.stack([(-ordinal_loss(scores, y.expand(9), cuts)).exp() for y in levels], 1)
    torch.testing.assert_close(probability.sum(1), torch.ones(9, dtype=torch.float64))
    above = torch.sigmoid(scores[:, None] - cuts)
    torch.testing.assert_close(probability.flip(1).cumsum(1).flip(1)[:, 1:], above)


def test_ordinal_loss_is_finite_and_smooth_far_from_its_level():
    cuts = torch.tensor([-1.0, 1.0], requires_grad=True)
    scores = torch.tensor([-300.0, 300.0, 300.0, -300.0], requires_grad=True)
    loss = ordinal_loss(scores, torch.tensor([2.0, 0.0, 1.0, 1.0]), cuts)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.full((4,), 300.0), atol=2.0, rtol=0)
    torch.testing.assert_close(scores.grad, torch.tensor([-1.0, 1.0, 1.0, -1.0]))
    assert cuts.grad.isfinite().all()


def test_ordinal_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    cuts = torch.tensor([-0.5, 0.1, 1.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0.0, 1.0, 2.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z, c: ordinal_loss(z, labels, c), (scores, cuts))


def test_two_levels_are_a_binary_task():
    scores, labels = torch.randn(20), (torch.arange(20) % 2).float()
    torch.testing.assert_close(
        ordinal_loss(scores, labels, torch.zeros(1)),
        F.binary_cross_entropy_with_logits(scores, labels, reduction="none"),
    )


def test_bad_input_is_named():
    loss = MultiTaskLoss(["a", "b"])
    with pytest.raises(ArgumentError, match=r"Expected \[B, 2\]"):
        loss(torch.zeros(3, 1), torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match="whole numbers 0 to 2"):
        ordinal_loss(torch.zeros(2), torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0]))
    with pytest.raises(UnknownNameError, match="huber"):
        MultiTaskLoss(["a"], regression="hubert")
    with pytest.raises(UnknownNameError, match="mean_tasks"):
        MultiTaskLoss(["a"], reduction="mean")
