"""The Lightning module: schedules, stages, selection, resume, and what it refuses."""

import copy
import math
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError, CheckpointError, ConfigError, UnknownNameError
from moeapps.training import AtomicCheckpointIO, BestWeights
from moeapps.vision.datasets import load
from moeapps.vision.datasets.images import ImageSet, Splits
from moeapps.vision.figures import figures
from moeapps.vision.longtail.aggregate import WeightedLogits
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.datamodules import LongTailData
from moeapps.vision.longtail.early_exit import Sequential
from moeapps.vision.longtail.logit_adjustment import BalancedSoftmax
from moeapps.vision.longtail.metrics import mean_off_diagonal, pairwise_kl
from moeapps.vision.longtail.modules import LongTailClassifier, teacher_network
from moeapps.vision.longtail.scoring import Predictions, expert_scores
from moeapps.vision.sections import sections

SMALL = {"backbone": "resnet8", "backbone_args": {"widths": [4, 6, 8]}}
METHODS = (
    "cross_entropy", "balanced_softmax", "ldam", "ride", "sade", "balpoe", "mdcs", "tlc",
)  # fmt: skip


def make(name="ride", **arguments):
    given = {"milestones": [2], "warmup_epochs": 1, "many": 50, "few": 15, **arguments}
    return LongTailClassifier(name, model_args={**SMALL, **given.pop("model_args", {})}, **given)


def make_data(**arguments):
    return LongTailData("digits-lt", **{"batch_size": 64, **arguments})


def make_trainer(epochs=2, **arguments):
    return pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **arguments},
    )  # fmt: skip


def fit(module, data=None, *, ckpt_path=None, seed=0, **arguments):
    torch.manual_seed(seed)
    run = make_trainer(**arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        run.fit(module, datamodule=data or make_data(), ckpt_path=ckpt_path)
    return run


def evaluate(module, data=None, split="test"):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        run = make_trainer()
        (found,) = getattr(run, split)(module, datamodule=data or make_data(), verbose=False)
    return found


# ----------------------------------------------------------------------------------- every method


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_logs_the_fixed_names(name):
    module = make(name)
    run = fit(module)
    groups = {f"accuracy/{group}" for group in ("many", "medium", "few")}
    names = {"accuracy", "balanced_accuracy", "loss", *groups}
    assert {"train/loss", *(f"val/{one}" for one in names)} <= set(run.callback_metrics)
    found = evaluate(module)
    assert {f"test/{one}" for one in (*names, "ece", "failure/auroc", "failure/fpr95")} <= set(
        found
    )
    assert all(math.isfinite(value) for value in found.values())
    arrays = module.results()
    assert arrays["class_accuracy"].shape[1] == 10
    assert ("disagreement" in arrays) == (module.model.num_experts > 1)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_digits(name):
    module = make(name, milestones=[10], model_args={"backbone_args": {"widths": [8, 12, 16]}})
    fit(module, make_data(batch_size=32), epochs=12, limit_val_batches=0)
    assert evaluate(module)["test/balanced_accuracy"] > 0.35  # 0.1 by chance


# -------------------------------------------------------------------------------------- schedules


def test_rate_warms_up_drops_cumulatively_and_is_set_once_per_epoch():
    seen = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = make(lr=0.1, trunk_lr=0.01, milestones=[3, 4], gamma=0.1, warmup_epochs=2)
    fit(module, epochs=5, callbacks=[Rates()], limit_val_batches=0)
    per_epoch = seen[:: len(seen) // 5]
    assert seen == [rates for rates in per_epoch for _ in range(len(seen) // 5)]
    expected = [0.05, 0.1, 0.1, 0.01, 0.001]
    assert [rates[1] for rates in per_epoch] == pytest.approx(expected)
    assert [rates[0] for rates in per_epoch] == pytest.approx([rate / 10 for rate in expected])


def test_cosine_falls_to_zero():
    module = make(cosine=True, warmup_epochs=0)
    rates = [module.rate(epoch, 4) for epoch in (1, 2, 3, 4, 5)]
    assert rates == pytest.approx([1, (1 + math.cos(math.pi / 4)) / 2, 0.5, 0.1464466, 0])


@pytest.mark.parametrize("name", ["ride", "mdcs"])
def test_losses_get_epochs_from_one_and_all_views_in_one_call(name, monkeypatch):
    module = make(name)
    seen, rows = [], []
    module.setup = lambda stage, setup=module.setup: (setup(stage), watch())

    def watch():
        kind, forward = type(module.model), module.model.forward
        loss = kind.loss
        monkeypatch.setattr(
            kind, "loss", lambda self, aux, target, epoch: (
                seen.append(epoch), loss(self, aux, target, epoch))[1],
        )  # fmt: skip

        def counted(images, return_aux=False):
            if module.model.training:
                rows.append(len(images))
            return forward(images, return_aux)

        module.model.forward = counted

    fit(module, make_data(drop_last=True), epochs=2, limit_val_batches=0)
    assert sorted(set(seen)) == [1, 2]
    assert set(rows) == {64 * (2 if name == "mdcs" else 1)}
    assert len(rows) == len(seen)


# ----------------------------------------------------------------------------- stages, selection


def test_second_stage_leaves_the_experts_alone_and_learns_an_exit():
    module = make(early_exit="assignment", early_exit_args={"epochs": 1, "top_n": 5})
    weights = {}

    class Remember(pl.Callback):
        def on_fit_end(self, trainer, pl_module):  # comes before the module's own
            weights.update(copy.deepcopy(pl_module.model.state_dict()))

    fit(module, callbacks=[Remember()])
    changed = {
        name.split(".")[0]
        for name, value in module.model.state_dict().items()
        if not torch.equal(value, weights[name])
    }
    assert changed == {"aggregate"}
    assert isinstance(module.model.aggregate, Sequential)
    assert 1 <= evaluate(module)["test/experts/used"] <= 3


def test_early_exit_does_not_judge_the_epochs():
    plain, exits = make(), make(early_exit="max_prob", early_exit_args={"threshold": 0.0})
    found = [fit(module).callback_metrics["val/balanced_accuracy"] for module in (plain, exits)]
    assert found[0] == found[1]
    assert evaluate(exits)["test/experts/used"] == 1
    assert evaluate(plain)["test/experts/used"] == 3


def test_engagement_of_tlc_asks_fewer_experts_for_a_higher_threshold():
    used = []
    for threshold in (1e-30, 0.9):
        module = make("tlc", early_exit="doubt", early_exit_args={"threshold": threshold})
        fit(module)
        used.append(evaluate(module)["test/experts/used"])
    assert used[0] == 3 > used[1]


def test_test_time_weights_are_learned_from_the_test_images_and_logged():
    module = make("sade", test_time=True, test_time_args={"epochs": 1})
    fit(module)
    assert module.model.aggregate.weights.tolist() == pytest.approx([1 / 3] * 3)
    found = evaluate(module)
    weights = [found[f"test/weight/{k}"] for k in (1, 2, 3)]
    assert sum(weights) == pytest.approx(1)
    assert weights != pytest.approx([1 / 3] * 3, abs=1e-4)
    assert isinstance(module.model.aggregate, WeightedLogits)


def test_best_weights_are_those_of_the_best_validation():
    module = make(select="best", lr=0.3, milestones=[], warmup_epochs=0)
    run = fit(module, epochs=4)
    (best,) = [one for one in run.callbacks if isinstance(one, BestWeights)]
    again = evaluate(module, split="validate")
    assert again["val/balanced_accuracy"] == pytest.approx(best.score)


def test_mixed_images_reach_the_loss_as_soft_targets(monkeypatch):
    module = make("balpoe", mixup_alpha=0.4)
    seen = []
    kind = LongTailModel
    loss = kind.loss
    monkeypatch.setattr(
        kind, "loss", lambda self, aux, target, epoch: (
            seen.append(target), loss(self, aux, target, epoch))[1],
    )  # fmt: skip
    fit(module, epochs=1, limit_val_batches=0)
    assert all(target.shape == (64, 10) for target in seen)
    assert all(torch.allclose(target.sum(1), torch.ones(64)) for target in seen)


def test_student_learns_from_a_teachers_checkpoint(tmp_path):
    teacher = make(model_args={"num_experts": 4})
    run = fit(teacher, epochs=1, plugins=[AtomicCheckpointIO()])
    run.save_checkpoint(tmp_path / "teacher.ckpt")
    loaded = teacher_network(tmp_path / "teacher.ckpt")
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(images), teacher.model.eval()(images))
    student = make(teacher=str(tmp_path / "teacher.ckpt"))
    fit(student, epochs=1)
    student.model.train()
    _, aux = student.model(images, return_aux=True)
    assert "distillation" in student.model.loss_parts(aux, torch.tensor([0, 1, 2]), 1)
    assert not any("teacher" in name for name in student.state_dict())


@pytest.mark.parametrize("name", ["tlc", "balanced_softmax"])
def test_foreign_images_are_compared_with_the_test_images_on_one_scale(name):
    known = load("digits-lt")
    own = {
        "the same": known.test,
        "black": ImageSet(np.zeros((40, 8, 8), np.float32), np.zeros(40, np.int64), ("none",)),
    }
    data = LongTailData.from_splits(known, "digits-own", foreign_images=own, batch_size=64)
    module = make(name, model_args={"num_experts": 3})
    fit(module, data, epochs=4)
    found = evaluate(module, data)
    assert found["test/foreign/the same/auroc"] == pytest.approx(0.5)  # not told apart
    assert found["test/foreign/the same/fpr95"] == pytest.approx(0.95, abs=0.01)
    with torch.no_grad():
        doubts = module.eval()._doubts(data.test_dataloader())
        black = module._doubts(data.foreign_dataloaders()["black"])
    share = (black[0] > doubts).float().mean()
    assert found["test/foreign/black/auroc"] == pytest.approx(float(share), abs=1e-6)
    arrays = module.results()
    kinds = ["failure", "tail", "foreign/the same", "foreign/black"]
    assert arrays["doubt_of"].tolist() == kinds
    assert arrays["doubt"][3, 0] == pytest.approx(found["test/foreign/black/auroc"], abs=1e-6)


# ----------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "mdcs"},
        {"name": "balpoe", "mixup_alpha": 0.4},
        {"name": "ride", "early_exit": "assignment", "early_exit_args": {"epochs": 1}},
        {"name": "ldam", "select": "best"},
    ],
    ids=lambda given: given["name"],
)
def test_resumed_run_ends_bit_for_bit_as_an_unbroken_one(arguments, tmp_path):
    keep = pl.callbacks.ModelCheckpoint(
        tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
    )
    straight = make(**arguments)
    fit(straight, epochs=3, enable_checkpointing=True, callbacks=[keep])
    torch.rand(7)
    resumed = make(**arguments)
    fit(resumed, epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt", seed=9)
    expected = straight.state_dict()
    assert resumed.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


# ---------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"early_exit": "never"}, UnknownNameError, "early exit"),
        ({"select": "first"}, UnknownNameError, "selection"),
        ({"early_exit": "max_prob", "test_time": True}, ConfigError, "exclude"),
    ],
)
def test_unusable_options_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        make(**arguments)


@pytest.mark.parametrize(
    ("module", "data", "words"),
    [
        ({"name": "mdcs", "mixup_alpha": 0.4}, {}, "mixup_alpha: 0"),
        ({"name": "ride", "mixup_alpha": 0.4}, {}, "mixup_alpha: 0"),
        ({"name": "sade", "teacher": "nowhere"}, {}, "distillation"),
        ({"name": "mdcs"}, {"views": 1}, "needs 2 views"),
    ],
)
def test_options_that_do_not_fit_model_or_data_are_refused(module, data, words):
    with pytest.raises(ConfigError, match=words):
        fit(make(**module), make_data(**data))


def test_missing_teacher_is_told():
    with pytest.raises(CheckpointError, match="nowhere"):
        fit(make(teacher="nowhere"))


def test_counts_that_disagree_with_the_data_are_refused():
    module = make(num_classes=10, class_counts=[9] * 10, in_channels=1)
    with pytest.raises(ArgumentError, match="was built for class_counts"):
        fit(module)


def test_best_needs_validation_images():
    splits = make_data()
    splits.setup()
    whole = splits.splits
    without = Splits(whole.train, None, whole.test, "own")
    data = LongTailData.from_splits(without, "digits-own", batch_size=64)
    with pytest.raises(ConfigError, match="validation images"):
        fit(make(select="best"), data)
    fit(make(), LongTailData.from_splits(without, "digits-own", batch_size=64), epochs=1)


def test_one_expert_that_gives_nan_does_not_silence_the_others():
    module = make()
    fit(module, epochs=1)
    with torch.no_grad():
        module.model.backbone.heads[1].weight.fill_(torch.nan)
    found = evaluate(module)
    assert found["test/experts/used"] == 2
    assert math.isfinite(found["test/loss"])
    results = module.results()
    assert np.isnan(results["class_accuracy"][2]).all()
    assert np.isfinite(np.delete(results["class_accuracy"], 2, axis=0)).all()
    assert found["test/experts/disagreement"] == pytest.approx(results["disagreement"][0, 2])
    assert {"groups", "disagreement", "engagement"} <= set(figures(results, {}))
    groups, *_ = sections(results)
    assert [row[1] for row in groups.table.rows].index("not defined") == 2


def test_prediction_with_an_early_exit_calls_later_branches_on_fewer_images():
    module = LongTailClassifier(
        "balanced_softmax", model_args={"num_experts": 3, "backbone": "resnet8"},
        early_exit="max_prob", early_exit_args={"threshold": 0.4},
        num_classes=3, class_counts=[4, 3, 2],
    ).eval()  # fmt: skip
    torch.manual_seed(0)
    rows = [0, 0, 0]
    for k, body in enumerate(module.model.backbone.bodies):
        body.register_forward_hook(
            lambda _, inputs, __, k=k: rows.__setitem__(k, rows[k] + len(inputs[0]))
        )
    images = torch.randn(16, 3, 16, 16)
    found = module.predict_step({"image": images, "index": torch.arange(16)}, 0)
    assert rows[0] == 16
    assert sum(rows) == int(found["experts"].sum())
    assert sum(rows) < 48


def test_weights_of_test_time_do_not_replace_another_aggregation():
    with pytest.raises(ConfigError, match="Leave out test_time"):
        LongTailClassifier(
            "cross_entropy", model_args={"backbone": "resnet8", "tau": 1.0}, test_time=True,
            num_classes=3, class_counts=[4, 3, 2],
        )  # fmt: skip


def test_scores_leave_out_an_expert_without_an_answer():
    model = BalancedSoftmax(3, [4, 3, 2], backbone="resnet8", num_experts=2)
    logits = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))
    logits[:5, 1] = torch.nan
    rows = Predictions(
        {
            "output": logits[:, 0], "target": torch.arange(20) % 3, "logits": logits,
            "used": torch.ones(20),
        }
    )  # fmt: skip
    found = expert_scores(rows, model)
    assert all(value == value for value in found.values()), found
    kept = logits[5:]
    assert found["accuracy/expert_2"] == expert_scores(
        Predictions({
            "output": kept[:, 0], "target": torch.arange(5, 20) % 3, "logits": kept,
            "used": torch.ones(15),
        }), model,
    )["accuracy/expert_2"]  # fmt: skip
    assert found["experts/kl"] == mean_off_diagonal(pairwise_kl(kept))


def test_data_that_does_not_tell_its_classes_is_refused():
    module, run = make(), make_trainer()
    with pytest.raises(ConfigError, match=r"no data module with class_counts.*LongTailData"):
        run.fit(module, train_dataloaders=[{"image": torch.zeros(2, 1, 8, 8)}])
