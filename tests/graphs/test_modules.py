"""Training by turns: acceptance, optimisers, rollback, logs, collapse guard, results, bad input."""

import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from turn_training import SMALL, Spy, same, tiny, train, trainer

from moeapps.errors import ArgumentError, CollapseWarning, ConfigError, UnknownNameError
from moeapps.graphs import MowstClassifier, NodeClassifier, NodeData, mixed_csbm
from moeapps.graphs.fitting import fit

# ---------------------------------------------------------------------------------- acceptance


def accept(seed, **options):
    data = NodeData("mixed-csbm", dataset_args={"seed": seed})
    alone = {n: fit(NodeClassifier(n), data, seed=seed)["test/acc"] for n in ("mlp", "gcn")}
    module = MowstClassifier("gcn", pretrain="both", **options)
    got = fit(module, data, seed=seed)["test/acc_expected"]
    assert got >= alone["gcn"] + 0.06
    assert got >= alone["mlp"] + 0.20
    c = module.all_outputs().routing.weights[:, 0]
    kind = data.data.kind
    assert c[kind == 1].mean() - c[kind == 0].mean() >= 0.6
    return got


@pytest.mark.parametrize("seed", [0, 1])
def test_mowst_beats_both_its_experts(seed):
    accept(seed, rounds=1)


@pytest.mark.slow
def test_mowst_beats_both_its_experts_on_five_seeds():
    assert np.mean([accept(seed) for seed in range(5)]) >= 0.915


def test_star_form_beats_both_its_experts():
    data = NodeData("mixed-csbm")
    alone = fit(NodeClassifier("gcn"), data)["test/acc"]
    star = fit(MowstClassifier("gcn", joint=True, mix="logit"), data)
    assert star["test/acc"] >= alone + 0.06


@pytest.mark.slow
def test_gate_fitted_on_validation_nodes_is_nearly_as_good():
    module = MowstClassifier("gcn", pretrain="both", gate_data="val")
    assert fit(module, NodeData("mixed-csbm"))["test/acc"] >= 0.88


def test_gate_on_validation_nodes_comes_after_both_experts():
    spy = Spy()
    module = MowstClassifier("gcn", pretrain="both", gate_data="val", **SMALL)
    train(module, None, None, spy)
    phases = [turn.phase for turn in module.schedule.history]
    assert phases == ["pretrain_weak", "pretrain_strong", "gate"]
    assert len(module.graph.rows["gate"]) == 50
    assert len(module.graph.rows["val"]) == 50


# --------------------------------------------------------------------------------------- turns


def test_every_turn_gets_a_new_optimiser_over_what_learns():
    spy = Spy()
    module = MowstClassifier("gcn", pretrain="both", **SMALL)
    train(module, None, None, spy)
    starts = [turn.start for turn in module.schedule.history]
    assert len({id(optimizer) for optimizer in spy.optimizers}) == len(starts)
    assert all(spy.steps[start] == 0 for start in starts)
    for start, turn in zip(starts, module.schedule.history, strict=True):
        held = {p for g in spy.optimizers[start].param_groups for p in g["params"]}
        kind = turn.phase.partition(":")[0]
        assert held == set(module.turns.parameters(kind))
        wanted = module.hparams.lr_pretrain if "pretrain" in kind else module.hparams.lr
        assert {g["lr"] for g in spy.optimizers[start].param_groups} == {wanted}


def test_rates_of_pretraining_and_turns_are_separate():
    spy = Spy()
    module = MowstClassifier("gcn", lr_pretrain=0.1, lr=0.001, **SMALL)
    train(module, None, None, spy)
    rates = {
        phase.partition(":")[0]: optimizer.param_groups[0]["lr"]
        for phase, optimizer in zip(spy.phases, spy.optimizers, strict=True)
    }
    assert rates == {"pretrain_strong": 0.1, "weak": 0.001, "strong": 0.001}


def test_logs_carry_the_fixed_names():
    spy = Spy()
    train(MowstClassifier("gcn", **SMALL), None, None, spy)
    assert {"train/loss", "val/acc", "val/loss", "phase"} <= set(spy.logged[0])
    weak = spy.phases.index("weak:1")
    names = {"train/loss", "val/acc", "val/acc_weak", "val/acc_strong", "val/acc_expected"}
    gate = {"gate/c_mean", "gate/c_std", "gate/c_mean_train", "gate/c_std_train", "phase"}
    assert names | gate <= set(spy.logged[weak])


def test_training_ends_by_itself_with_the_best_turn():
    module = MowstClassifier("gcn", **SMALL)
    run = train(module)
    assert module.schedule.phase == "done"
    best = max(t.best for t in module.schedule.history if not t.phase.startswith("pretrain"))
    assert module.schedule.best == best
    measured = module.measure("done", module.outputs("done", None))
    assert float(measured["acc_expected"]) == pytest.approx(best, abs=1e-6)
    assert run.current_epoch == module.schedule.total_epochs


def test_rolled_back_turn_leaves_no_trace():
    class Worse(MowstClassifier):
        """Scores fall after the first weak turn, so later turns are rolled back."""

        def measure(self, kind, outputs):
            measures = super().measure(kind, outputs)
            if self.schedule.phase not in ("pretrain_strong", "weak:1"):
                measures["score"] = torch.tensor(-1.0)
            return measures

    weights = {}

    class Keep(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            phase = pl_module.schedule.phase
            if phase not in weights:
                weights[phase] = {k: v.clone() for k, v in pl_module.model.state_dict().items()}

    module = Worse("gcn", **{**SMALL, "round_patience": 1})
    train(module, None, None, Keep())
    assert [t.accepted for t in module.schedule.history] == [True, True, False, False, False]
    assert same(weights["strong:1"], weights["weak:2"])
    assert same(weights["strong:1"], module.model.state_dict())


def test_outside_end_keeps_the_best_so_far():
    module = MowstClassifier("gcn", **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(module, max_epochs=9)
    assert module.schedule.phase == "done"
    measured = module.measure("done", module.outputs("done", None))
    assert float(measured["acc_expected"]) == pytest.approx(module.schedule.best, abs=1e-6)


def test_gate_without_parameters_cannot_be_fitted_alone():
    module = MowstClassifier("gcn", gate="power", gate_data="val", pretrain="both", **SMALL)
    with pytest.raises(ArgumentError, match="no parameters"):
        train(module)


def test_power_gate_trains():
    module = MowstClassifier("gcn", gate="power", detach_dispersion=False, **SMALL)
    train(module)
    assert module.schedule.best > 0.3


def test_weak_graph_expert_trains():
    module = MowstClassifier("graphsage", "gcn", **SMALL)
    train(module)
    assert module.schedule.phase == "done"


def test_auxiliary_losses_of_the_gate_are_added():
    spy = Spy()
    module = MowstClassifier("gcn", aux_losses={"balance": 0.1}, **SMALL)
    train(module, None, None, spy)
    with_balance = {
        p for p, names in zip(spy.phases, spy.logged, strict=True) if "aux/balance" in names
    }
    assert "weak:1" in with_balance
    assert "pretrain_strong" not in with_balance


# -------------------------------------------------------------------------------- collapse guard


def test_collapsed_gate_warns_once():
    module = MowstClassifier(
        "gcn", gate="power", power=50, pretrain="both", hidden_channels=16, epochs=12, patience=12,
        rounds=2, lr=1e-6, lr_pretrain=1e-6,
    )  # fmt: skip
    with pytest.warns(CollapseWarning, match="equals its strong expert") as caught:
        train(module)
    assert sum(issubclass(w.category, CollapseWarning) for w in caught) == 1


def test_healthy_gate_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        train(MowstClassifier("gcn", pretrain="both", hidden_channels=16, epochs=20, rounds=1))


# ------------------------------------------------------------------------- results and predictions


def test_results_are_plain_arrays_for_every_node():
    module = MowstClassifier("gcn", **SMALL)
    run = train(module)
    with pytest.raises(ConfigError, match="test"):
        module.results()
    (numbers,) = run.test(module, datamodule=tiny(), verbose=False)
    results = module.results()
    per_node = {
        "label", "local_homophily", "confidence", "weak_correct", "strong_correct",
        "mixture_correct", "train_mask", "val_mask", "test_mask", "kind",
    }  # fmt: skip
    assert per_node <= set(results)
    assert all(results[name].shape == (400,) for name in per_node)
    assert all(value.dtype != object for value in results.values())
    test = results["test_mask"]
    assert results["mixture_correct"][test].mean() == pytest.approx(numbers["test/acc"], abs=1e-6)
    turns = module.schedule.history
    assert results["turn_phase"].tolist() == [t.phase for t in turns]
    assert results["turn_start"].tolist() == [t.start for t in turns]


def test_predictions_cover_all_nodes():
    module = MowstClassifier("gcn", joint=True, **SMALL)
    run = train(module)
    (prediction,) = run.predict(module, datamodule=tiny())
    assert prediction["label"].shape == prediction["confidence"].shape == (400,)
    torch.testing.assert_close(prediction["probability"].sum(-1), torch.ones(400))
    assert torch.equal(prediction["probability"].argmax(-1), prediction["label"])
    single = NodeClassifier("mlp", epochs=2)
    (prediction,) = train(single).predict(single, datamodule=tiny())
    assert set(prediction) == {"label", "probability"}


def test_sampled_prediction_is_reproducible():
    module = MowstClassifier("gcn", predict_mode="sample", **SMALL)
    run = train(module)
    first, second = (run.predict(module, datamodule=tiny())[0]["label"] for _ in range(2))
    assert torch.equal(first, second)


def test_auroc_is_selected_and_reported():
    data = mixed_csbm("tiny", num_classes=2)
    module = MowstClassifier("gcn", **SMALL)
    source = NodeData.from_data(data, metric="auroc")
    measures = fit(module, source)
    assert measures["val/auroc"] == measures["val/score"] == pytest.approx(module.schedule.best)
    assert measures["test/auroc"] > 0.7


def test_fit_is_deterministic_and_leaves_global_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = fit(MowstClassifier("gcn", **SMALL), tiny())
    assert torch.equal(torch.rand(3), expected)
    assert fit(MowstClassifier("gcn", **SMALL), tiny()) == first


def test_bare_and_logging_trainers_train_alike():
    bare, full = (MowstClassifier("gcn", **SMALL) for _ in range(2))
    fit(bare, tiny(), seed=0)
    train(full, seed=0)
    assert same(bare.state_dict(), full.state_dict())


# ------------------------------------------------------------------------------------ odd graphs


@pytest.mark.parametrize(
    "case", ["no edges", "isolated nodes", "two classes", "missing class", "half features"]
)
def test_odd_graphs_train(case):
    data = mixed_csbm("tiny", num_classes=2 if case == "two classes" else 5)
    if case == "no edges":
        data.edge_index = data.edge_index[:, :0]
    elif case == "isolated nodes":
        data.edge_index = data.edge_index[:, (data.edge_index < 100).all(0)]
    elif case == "missing class":
        data.train_mask &= data.y != 3
    elif case == "half features":
        data.x = data.x.half()
    for strong in ("gcn", "graphsage"):
        measures = fit(MowstClassifier(strong, **SMALL), NodeData.from_data(data))
        assert np.isfinite(list(measures.values())).all()


def broken(change):
    data = mixed_csbm("tiny")
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.x.__setitem__((7, 0), float("nan")), "node 7"),
        (lambda d: d.y.__setitem__(0, -7), "-7"),
        (lambda d: d.y.zero_(), "at least 2"),
        (lambda d: d.train_mask.zero_(), "train_mask is empty"),
        (lambda d: d.val_mask.zero_(), "val_mask is empty"),
    ],
    ids=["NaN features", "label out of range", "one class", "no training node", "no validation"],
)
def test_bad_graphs_are_refused(change, said):
    with pytest.raises(ArgumentError, match=said):
        fit(MowstClassifier("gcn", **SMALL), NodeData.from_data(broken(change)))


def test_one_training_node_is_refused_with_advice():
    data = mixed_csbm("tiny")
    first = data.train_mask.nonzero()[0]
    data.train_mask = torch.zeros_like(data.train_mask)
    data.train_mask[first] = True
    with pytest.raises(ArgumentError, match="BatchNorm"):
        fit(MowstClassifier("gcn", pretrain="none", **SMALL), NodeData.from_data(data))


def test_wrong_uses_are_explained():
    with pytest.raises(UnknownNameError, match="val"):
        MowstClassifier("gcn", gate_data="validation")
    with pytest.raises(ConfigError, match="pretrain='both'"):
        MowstClassifier("gcn", gate_data="val")
    with pytest.raises(UnknownNameError, match="auroc"):
        fit(NodeClassifier("gcn", metric="auc"), tiny())
    with pytest.raises(ArgumentError, match="in_channels=7"):
        fit(NodeClassifier("gcn", in_channels=7, out_channels=5), tiny())
    with pytest.raises(ConfigError, match="data module"):
        trainer().fit(NodeClassifier("gcn"), torch.utils.data.DataLoader([0]))
    with pytest.raises(ConfigError, match="skips validations"):
        train(NodeClassifier("gcn"), check_val_every_n_epoch=2)
