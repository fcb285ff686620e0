"""Numbers of a diagnosis against direct computation, thresholds, and figures."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from ranking import TASKS, ranking_data

from moeapps.recsys.diagnostics import Diagnosis, LevelDiagnosis, diagnose
from moeapps.recsys.figures import CAPTIONS, diagnosis_figures, figures
from moeapps.recsys.losses import MultiTaskLoss
from moeapps.recsys.models.home import HoME
from moeapps.recsys.models.mmoe import MMoE
from moeapps.recsys.models.ple import PLE
from moeapps.recsys.models.shared_bottom import SharedBottom
from moeapps.recsys.problems import ADVICE, THRESHOLDS, findings, own_weights
from moeapps.recsys.sections import sections
from moeapps.registry import MODELS
from moeapps.testing.models import Subject


@pytest.fixture(scope="module")
def data():
    made = ranking_data(rows=512, batch_size=100, gaps=True)
    made.setup()
    return made


def built(kind, data, **arguments):
    torch.manual_seed(0)
    return kind(data.schema, data.tasks, tower_dims=[8], **arguments)


@pytest.fixture(scope="module")
def ple(data):
    return built(PLE, data, expert_dims=[[16], [8]])


@pytest.fixture(scope="module")
def found(ple, data):
    return diagnose(ple, data.val_dataloader())


def all_rows(model, data):
    batches = list(data.val_dataloader())
    assert len(batches) > 2
    model.eval()
    with torch.no_grad():
        levels = [model(batch, return_aux=True)[1].levels for batch in batches]
    stacked = []
    for parts in zip(*levels, strict=True):
        experts = torch.cat([part.experts for part in parts]).double().numpy()
        gates = torch.cat([part.routing.probs for part in parts]).double().numpy()
        stacked.append((experts, gates))
    return stacked


def test_numbers_equal_a_direct_computation_over_all_rows(ple, data, found):
    assert found.rows == 256
    assert [level.name for level in found.levels] == ["levels.0", "levels.1"]
    for level, (h, gate) in zip(found.levels, all_rows(ple, data), strict=True):
        np.testing.assert_allclose(level.zero_frac, (abs(h) < 1e-6).mean((0, 2)))
        np.testing.assert_allclose(level.dead, (abs(h) < 1e-6).all(0).mean(1))
        np.testing.assert_allclose(level.unit_std, h.std(0).mean(1), rtol=1e-6)
        np.testing.assert_allclose(level.mean_gate, gate.mean(0), rtol=1e-6)
        seen = (gate > 0).any(0).sum(1)
        entropy = -(gate * np.log(np.where(gate > 0, gate, 1))).sum(2).mean(0)
        np.testing.assert_allclose(level.gate_entropy, entropy / np.log(seen), rtol=1e-6)
        mean = gate.mean(0)
        entropy = -(mean * np.log(np.where(mean > 0, mean, 1))).sum(1)
        np.testing.assert_allclose(level.mean_entropy, entropy / np.log(seen), rtol=1e-6)
        np.testing.assert_allclose(level.saturation, (gate.max(2) > 0.95).mean(0))
        rows = h.transpose(1, 0, 2).reshape(h.shape[1], -1)
        expected = np.quantile(rows, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1).T
        np.testing.assert_allclose(level.quantiles, expected, atol=1e-6)


def test_concentration_of_shared_experts_and_mass_on_own_ones(data, found):
    for level in found.levels:
        gate = np.array(level.mean_gate)[:2]  # the tasks
        for expert, owner in enumerate(level.owners):
            if owner == "shared":
                share = gate[:, expert] / gate[:, expert].sum()
                assert level.hhi[expert] == pytest.approx(2 * (share**2).sum())
            else:
                assert np.isnan(level.hhi[expert])
        assert level.specific[:2] == pytest.approx([gate[0, 0], gate[1, 1]])
    assert np.isnan(found.levels[0].specific[2]) == ("shared" not in found.levels[0].owners)


def test_gradient_shares_equal_those_of_the_loss_of_each_task(ple, data, found):
    criterion = MultiTaskLoss(ple.tasks)
    parameters = list(ple.levels[1].experts.parameters())
    total = None
    for number, batch in enumerate(data.val_dataloader()):
        if number == 4:
            break
        losses = criterion(ple.eval()(batch), batch["labels"])
        rows = [
            [g.clone() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
            for loss in losses
        ]
        total = rows if total is None else [
            [a + b for a, b in zip(*pair, strict=True)] for pair in zip(total, rows, strict=True)
        ]  # fmt: skip
    norms = torch.stack([sum(g.flatten(1).square().sum(1) for g in task).sqrt() for task in total])
    expected = (norms / norms.sum(0)).numpy()
    np.testing.assert_allclose(found.levels[1].grad_share, expected, rtol=1e-4)
    assert expected[1, 0] == 0  # the like task never reaches the click expert


def test_rates_are_those_of_rows_with_labels(data, found):
    labels = torch.cat([batch["labels"] for batch in data.val_dataloader()])
    expected = [float(labels[:, t].nanmean()) for t in range(2)]
    assert found.tasks == [task.name for task in TASKS]
    assert found.rates == pytest.approx(expected)


def test_diagnosis_leaves_the_model_as_it_was(data):
    model = built(HoME, data, expert_dims=[[16], [8]], rank=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():  # as inside a test by Lightning
        diagnose(model, data.val_dataloader())
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_normalised_experts_have_no_zeros_and_even_spread(data):
    model = built(HoME, data, expert_dims=[[16], [8]], rank=4)
    for _ in range(20):  # the running statistics of the normalisation settle
        for batch in data.train_dataloader():
            model(batch)
    found = diagnose(model, data.val_dataloader())
    for level in found.levels:
        summary = level.summary()
        assert summary["zero_frac_max"] < 0.01
        assert summary["dead"] == 0
        assert summary["std_ratio"] < 1.5, level.name
    assert found.levels[0].gates == ["shared", "watch", "interaction"]


def test_model_without_gates_has_no_levels(data):
    found = diagnose(built(SharedBottom, data, bottom_dims=[8]), data.val_dataloader())
    assert found.levels == []
    assert findings(found) == []
    assert diagnosis_figures(found) == {}
    assert sections({"diagnosis": np.array(json.dumps(found.to_dict()))}) == []


@pytest.mark.parametrize("name", [n for n, e in MODELS.items() if e.domain == "recsys"])
def test_every_registered_model_can_be_diagnosed(name):
    subject = Subject(name)
    example = subject.example()
    batch = {**example.inputs["batch"], "labels": example.target}
    levels = diagnose(subject.build(), [batch]).levels
    for level in levels:
        rows = np.array(level.mean_gate).sum(1)
        np.testing.assert_allclose(rows[rows > 0], 1, atol=1e-6)
        assert np.isfinite(level.grad_share).any()


def test_plain_form_is_strict_json_and_comes_back(found):
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Diagnosis.from_dict(json.loads(text))
    for level, other in zip(found.levels, again.levels, strict=True):
        assert level.summary() == pytest.approx(other.summary(), nan_ok=True)


# ----------------------------------------------------------------------------------------- findings

HEALTHY = LevelDiagnosis(
    name="level", gates=["click", "like", "follow"],
    owners=["click", "like", "follow", "shared", "shared"],
    zero_frac=[0.1] * 5, dead=[0.0] * 5, unit_std=[1.0] * 5, quantiles=[[-1, 0, 1, 2, 3]] * 5,
    mean_gate=[[0.4, 0, 0, 0.3, 0.3], [0, 0.4, 0, 0.3, 0.3], [0, 0, 0.4, 0.3, 0.3]],
    gate_entropy=[0.8] * 3, mean_entropy=[0.9] * 3, saturation=[0.0] * 3, specific=[0.4] * 3,
    hhi=[float("nan")] * 3 + [1.0, 1.0],
    grad_share=[[1, 0, 0, 0.4, 0.3], [0, 1, 0, 0.3, 0.4], [0, 0, 1, 0.3, 0.3]],
)  # fmt: skip
RATES = [0.4, 0.03, 0.02]


def problems(**changes):
    level = dataclasses.replace(HEALTHY, **changes)
    return {f.kind for f in findings(Diagnosis(["click", "like", "follow"], RATES, 9, [level]))}


def test_healthy_level_has_no_findings():
    assert problems() == set()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("collapse", {"zero_frac": [0.1, 0.1, 0.1, 0.1, 0.75]}),
        ("collapse", {"dead": [0.0, 0.0, 0.0, 0.3, 0.3]}),
        ("collapse", {"unit_std": [1.0, 1.0, 1.0, 1.0, 3.0]}),
        ("collapse", {"unit_std": [1.0, 1.0, 1.0, 1.0, 0.0]}),
        ("degradation", {"hhi": [float("nan")] * 3 + [2.0, 1.0]}),
        ("degradation", {"grad_share": [[1, 0, 0, 0.9, 0.3], [0, 1, 0, 0.1, 0.4], [0] * 5]}),
        ("underfitting", {"specific": [0.4, 0.1, 0.05]}),
        ("polarised gates", {"saturation": [0.6, 0.6, 0.4]}),
        ("polarised gates", {"gate_entropy": [0.2] * 3}),
        ("polarised gates", {"mean_entropy": [0.2] * 3}),
        ("polarised gates", {
            "mean_gate": [[0.9, 0, 0, 0.05, 0.05], [0, 0.9, 0, 0.05, 0.05], [0, 0, 0.9, 0.05, 0.05]]
        }),
    ],
)  # fmt: skip
def test_each_problem_is_found_alone(kind, changes):
    assert problems(**changes) == {kind}


@pytest.mark.parametrize(("number", "threshold"), THRESHOLDS.items())
def test_every_threshold_reads_a_number_that_exists(number, threshold):
    assert number in HEALTHY.summary()
    assert threshold.kind in ADVICE


def test_gradient_of_a_task_at_its_own_expert_is_no_problem():
    assert HEALTHY.shared().tolist() == [False, False, False, True, True]


def test_sparse_tasks_are_those_below_a_fifth_of_the_largest_rate():
    level = dataclasses.replace(HEALTHY, specific=[0.5, 0.3, 0.1])
    sparse, dense = own_weights(level, {"click": 0.4, "like": 0.1, "follow": 0.02})
    assert (sparse, dense) == pytest.approx((0.1, 0.4))
    nobody = own_weights(level, {"click": 0.4, "like": 0.3, "follow": 0.2})
    assert np.isnan(nobody).all()


def test_an_expert_of_two_tasks_may_lean_to_one_of_them():
    gate = [[0.6, 0.4], [0.4, 0.6]]
    level = dataclasses.replace(
        HEALTHY, gates=["click", "like"], owners=["shared", "shared"], mean_gate=gate,
        gate_entropy=[0.9] * 2, mean_entropy=[0.9] * 2, saturation=[0.0] * 2,
        specific=[float("nan")] * 2, zero_frac=[0.0] * 2, dead=[0.0] * 2, unit_std=[1.0] * 2,
        quantiles=[[0] * 5] * 2, hhi=[1.04, 1.04], grad_share=[[0.5, 0.5], [0.5, 0.5]],
    )  # fmt: skip
    assert findings(Diagnosis(["click", "like"], [0.4, 0.3], 9, [level])) == []
    alone = dataclasses.replace(level, hhi=[1.9, 1.04])
    assert [f.kind for f in findings(Diagnosis(["click", "like"], [0.4, 0.3], 9, [alone]))] == [
        "degradation"
    ]


def test_gate_that_sees_one_expert_is_not_polarised(data):
    model = built(MMoE, data, num_experts=1, expert_dims=[8])
    found = diagnose(model, data.val_dataloader())
    assert not [f for f in findings(found) if f.kind == "polarised gates"]


# ------------------------------------------------------------------------------------------ figures


def test_every_figure_of_a_run_has_a_caption(found):
    results = {
        "tasks": np.array(["click", "like"]),
        "calibration": np.random.default_rng(0).random((2, 20, 2)),
        "diagnosis": np.array(json.dumps(found.to_dict())),
    }
    metrics = {
        "epoch": np.arange(3.0), "train/loss": np.ones(3), "val/auc/click": np.ones(3),
    }  # fmt: skip
    drawn = figures(results, metrics)
    assert set(drawn) == set(CAPTIONS)
    assert all(isinstance(figure, Figure) for figure in drawn.values())
    titles = [axis.get_title(loc="left") for axis in drawn["gates"].axes]
    assert titles[:2] == ["levels.0", "levels.1"]


def test_hidden_experts_stay_white_in_the_heat_map(found):
    image = diagnosis_figures(found)["gates"].axes[0].images[0]
    shown = np.ma.getmaskarray(image.get_array())
    assert shown.tolist()[:2] == [[False, True, False, False], [True, False, False, False]]


def test_calibration_without_rows_says_so():
    drawn = figures({"tasks": np.array(["a"]), "calibration": np.full((1, 20, 2), np.nan)}, {})
    assert drawn["calibration"].axes[0].texts[0].get_text() == "no data"


def test_report_names_problems_and_latency(found):
    broken = dataclasses.replace(found.levels[0], dead=[0.5] * 4)
    bad = dataclasses.replace(found, levels=[broken])
    parts = sections(
        {"diagnosis": np.array(json.dumps(bad.to_dict())), "latency": np.array([[1, 0.25]])}
    )
    assert [part.heading for part in parts] == ["Experts and gates", "Latency"]
    assert "levels.0, collapse" in parts[0].text
    assert parts[1].table.rows == (("1", "0.250"),)
