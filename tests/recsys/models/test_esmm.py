"""ESMM: the loss of the product over all impressions."""

import pytest
import torch
import torch.nn.functional as F
from sample_rankers import TWO, batch_for, bce, build

from moeapps.errors import ArgumentError
from moeapps.recsys.schema import Task


def test_probabilities_multiply():
    model, batch = build("esmm").double().eval(), batch_for("esmm", 20, dtype=torch.float64)
    logits, aux = model(batch, return_aux=True)
    ctr, cvr, ctcvr = (aux.extra[name] for name in ("ctr", "cvr", "ctcvr"))
    torch.testing.assert_close(ctcvr, ctr * cvr, rtol=1e-12, atol=0)
    torch.testing.assert_close(model.predict_proba(batch), torch.stack([ctr, ctcvr], 1))
    torch.testing.assert_close(logits.sigmoid()[:, 1], ctcvr)


def test_the_loss_on_logits_is_the_papers():
    model, batch = build("esmm").double().eval(), batch_for("esmm", 20, dtype=torch.float64)
    logits, aux = model(batch, return_aux=True)
    y = batch["labels"]
    paper = F.binary_cross_entropy(aux.extra["ctr"], y[:, 0]) + F.binary_cross_entropy(
        aux.extra["ctr"] * aux.extra["cvr"], y[:, 1]
    )
    torch.testing.assert_close(2 * bce(logits, batch), paper)


def test_the_conversion_tower_gets_no_gradient_where_nobody_clicks():
    model, batch = build("esmm"), batch_for("esmm", 20)
    batch["labels"][:, 1] = 0
    with torch.no_grad():
        model.towers.out.w[0] = 0
        model.towers.out.b[0] = -1e4  # the click rate is 0
    bce(model(batch), batch).backward()
    assert not model.towers.out.w.grad[1].any()
    assert model.towers.out.w.grad.isfinite().all()


@pytest.mark.parametrize("a", [-200.0, -20.0, 0.0, 20.0, 200.0])
@pytest.mark.parametrize("b", [-200.0, 0.0, 200.0])
def test_extreme_logits_stay_finite(a, b):
    model, batch = build("esmm"), batch_for("esmm", 4)
    with torch.no_grad():
        model.towers.out.w.zero_()
        model.towers.out.b.copy_(torch.tensor([[a], [b]]))
    logits = model(batch)
    bce(logits, batch).backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    expected = torch.tensor([a, b], dtype=torch.float64).sigmoid().prod()
    assert float(logits[0, 1].detach().sigmoid()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "tasks",
    [TWO[:1], [*TWO, Task("like")], [TWO[0], Task("buy", sample_mask="click")],
     [TWO[0], Task("spent", type="regression")]],
)  # fmt: skip
def test_tasks_that_are_not_click_and_conversion_are_refused(tasks):
    with pytest.raises(ArgumentError, match="click-and-conversion"):
        build("esmm", tasks=tasks)
