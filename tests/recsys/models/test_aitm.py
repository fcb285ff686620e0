"""AITM: transfer along a path, and the calibrator."""

import math

import pytest
import torch
from sample_rankers import batch_of, build

from moeapps.errors import ArgumentError
from moeapps.recsys.schema import Task


@pytest.mark.parametrize("share_attention", [True, False])
def test_equals_the_formulas(share_attention):
    model = build("aitm", share_attention=share_attention).double().eval()
    batch = batch_of(10, dtype=torch.float64)
    logits, aux = model(batch, return_aux=True)
    q = [expert(model.inputs(batch)) for expert in model.bank.to_expert_list()]
    k, z, expected = q[0].shape[1], q[0], []
    for t in range(3):
        if t:
            p = torch.relu(z @ model.transfer.w[t - 1].T + model.transfer.b[t - 1])
            h1, h2, h3 = model.attention.w[0 if share_attention else t - 1].chunk(3)
            dots = [((u @ h1.T) * (u @ h2.T)).sum(1) / math.sqrt(k) for u in (q[t], p)]
            weights = torch.stack(dots, 1).softmax(1)
            z = weights[:, :1] * (q[t] @ h3.T) + weights[:, 1:] * (p @ h3.T)
            torch.testing.assert_close(aux.extra["transfer"][:, t - 1], weights[:, 1])
        expected.append(z @ model.towers.out.w[t].T + model.towers.out.b[t])
    torch.testing.assert_close(logits, torch.cat(expected, 1))


def test_the_calibrator_counts_steps_likelier_than_the_one_before():
    model = build("aitm", calibrator=0.5)
    rate = torch.tensor([[0.5, 0.7, 0.6], [0.9, 0.5, 0.4]])
    penalty = model.penalty(rate.logit())
    assert float(penalty) == pytest.approx(0.5 * (0.2 + 0.0) / 2)


def test_gradients_flow_back_along_the_path_only():
    model, batch = build("aitm"), batch_of(20)
    model(batch)[:, 1].sum().backward()
    touched = [bool(grad.any()) for grad in model.bank.layers[0][0].w.grad]
    assert touched == [True, True, False]


def test_one_task_needs_no_transfer():
    model = build("aitm", tasks=[Task("click")]).eval()
    assert model(batch_of(4)).shape == (4, 1)
    assert float(model.penalty(model(batch_of(4))).detach()) == 0


def test_only_binary_tasks_form_a_path():
    with pytest.raises(ArgumentError, match="spent"):
        build("aitm", tasks=[Task("click"), Task("spent", type="regression")])
