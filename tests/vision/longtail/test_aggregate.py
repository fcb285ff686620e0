import math

import pytest
import torch

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.vision.longtail.aggregate import (
    Dempster,
    MeanLogits,
    MeanProb,
    PriorCorrected,
    TLCSoft,
    WeightedLogits,
    answered,
)
from moeapps.vision.longtail.evidence import log_engagement

LOGITS = torch.tensor(
    [
        [[2.0, 0.0, -1.0], [1.0, 1.0, 0.0], [0.0, 3.0, 0.0]],
        [[0.5, -0.5, 1.5], [0.0, 2.0, 1.0], [1.0, 1.0, 1.0]],
    ]
)
ALL = {
    "mean_logits": MeanLogits(),
    "mean_prob": MeanProb(),
    "weighted": WeightedLogits([0.5, 0.3, 0.2]),
    "prior": PriorCorrected(MeanProb(), [6, 3, 1]),
    "dempster": Dempster(),
    "tlc": TLCSoft(),
}


@pytest.mark.parametrize("name", ALL)
def test_output_and_routing_have_the_right_form(name):
    with gating.record(ALL[name]) as record:
        output = ALL[name](LOGITS)
    assert output.shape == (2, 3)
    (routings,) = record.routings.values()
    assert routings[0].check().weights.shape == (2, 3)
    torch.testing.assert_close(routings[0].weights.sum(-1), torch.ones(2))


@pytest.mark.parametrize("name", ALL)
def test_images_do_not_depend_on_each_other(name):
    alone = torch.cat([ALL[name](row[None]) for row in LOGITS])
    torch.testing.assert_close(alone, ALL[name](LOGITS))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_expert_that_is_not_finite_is_left_out_for_that_image(name, bad):
    others = WeightedLogits([0.5, 0.2]) if name == "weighted" else ALL[name]
    broken = LOGITS.clone()
    broken[0, 1, 2] = bad
    output = ALL[name](broken)
    torch.testing.assert_close(output[:1], others(LOGITS[:1, [0, 2]]))
    torch.testing.assert_close(output[1:], ALL[name](LOGITS)[1:])


@pytest.mark.parametrize("name", ALL)
def test_only_an_image_that_no_expert_answers_is_nan(name):
    broken = LOGITS.clone()
    broken[0] = math.nan
    output = ALL[name](broken)
    assert output[0].isnan().all()
    assert output[1].isfinite().all()


@pytest.mark.parametrize("name", ["mean_logits", "mean_prob", "tlc"])
def test_one_expert_is_that_expert(name):
    output = ALL[name](LOGITS[:, :1])
    torch.testing.assert_close(output.softmax(-1), LOGITS[:, 0].softmax(-1))


def test_no_images():
    for aggregate in ALL.values():
        assert aggregate(LOGITS[:0]).shape == (0, 3)


def test_means_by_hand():
    torch.testing.assert_close(MeanLogits()(LOGITS)[0], torch.tensor([1.0, 4 / 3, -1 / 3]))
    torch.testing.assert_close(MeanProb()(LOGITS).exp(), LOGITS.softmax(-1).mean(1))


def test_weights_by_hand_and_their_gradient():
    aggregate = WeightedLogits([2, 1, 1])
    torch.testing.assert_close(aggregate(LOGITS)[0], torch.tensor([1.25, 1.0, -0.5]))
    aggregate(LOGITS)[0, 0].backward()
    assert aggregate.gate.weight.grad is not None
    assert aggregate.gate.weight.grad.abs().sum() > 0
    for weights in ([], [1.0, 0.0], [[1.0]]):
        with pytest.raises(ArgumentError, match="positive number per expert"):
            WeightedLogits(weights)


def test_known_test_prior():
    q = torch.tensor([0.2, 0.3, 0.5])
    found = PriorCorrected(MeanLogits(), [6, 3, 1], test_prior=q, lam=1.0)(LOGITS)
    torch.testing.assert_close(found, LOGITS.mean(1) + q.log())
    for bad in ([0.5, 0.5], [1.0, 0.0, 0.0]):
        with pytest.raises(ArgumentError, match="all positive"):
            PriorCorrected(MeanLogits(), [6, 3, 1], test_prior=bad)


def test_dempster_by_hand_and_in_any_order():
    evidence = torch.tensor([[[6.0, 2.0], [1.0, 4.0], [3.0, 0.5]]])
    belief, doubt = evidence / (evidence.sum(-1, keepdim=True) + 2), 2 / (evidence.sum(-1) + 2)
    b, u = belief[0, 0].double(), doubt[0, 0].double()
    for k in (1, 2):
        b2, u2 = belief[0, k].double(), doubt[0, k].double()
        conflict = b.sum() * b2.sum() - (b * b2).sum()
        b, u = (b * b2 + b * u2 + b2 * u) / (1 - conflict), u * u2 / (1 - conflict)
    assert float(b.sum() + u) == pytest.approx(1)
    expected = (b + u / 2).float()
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        torch.testing.assert_close(Dempster()(evidence[:, order].log()).exp()[0], expected)


def test_dempster_stays_finite_for_certain_experts():
    logits = torch.tensor([[[30.0, -30.0], [30.0, -30.0], [30.0, -30.0]]])
    assert Dempster()(logits).isfinite().all()
    assert Dempster()(torch.tensor([[[30.0, -30.0], [-30.0, 30.0]]])).exp()[0].tolist() == [
        0.5,
        0.5,
    ]


def test_tlc_weights_by_hand():
    w = log_engagement(LOGITS)[..., :-1].exp()
    q = (w / 0.5).softmax(-1)
    torch.testing.assert_close(TLCSoft(0.5)(LOGITS), (q.unsqueeze(-1) * LOGITS).sum(1))


def test_released_tlc_normalises_over_the_batch():
    w = log_engagement(LOGITS)[..., :-1].exp()
    q = (w / 0.2).exp() / (w / 0.2).exp().sum(0)
    released = TLCSoft(0.2, batch_normalised=True)
    torch.testing.assert_close(released(LOGITS), (q.unsqueeze(-1) * LOGITS).sum(1))
    assert not torch.allclose(released(LOGITS[:1]), released(LOGITS)[:1])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_an_answer_is_finite_however_large(kind):
    largest = torch.finfo(kind).max
    rows = [
        [largest, largest],
        [-largest, 0.0],
        [0.0, torch.nan],
        [torch.inf, 0.0],
        [-torch.inf] * 2,
    ]
    logits = torch.tensor(rows, dtype=kind, requires_grad=True).unsqueeze(1)
    assert answered(logits).flatten().tolist() == [True, True, False, False, False]


def test_an_exported_aggregate_leaves_out_what_is_not_finite(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "moeapps[onnx]"')
    logits = torch.tensor([[[1.0, 2.0], [torch.nan, 5.0]], [[3.0, 0.0], [1.0, -torch.inf]]])
    model = MeanLogits().eval()
    torch.onnx.export(
        model, (torch.randn(2, 2, 2),), tmp_path / "m.onnx", dynamo=True, verbose=False
    )
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: logits.numpy()})
    assert found.tolist() == model(logits).tolist() == [[1.0, 2.0], [3.0, 0.0]]
