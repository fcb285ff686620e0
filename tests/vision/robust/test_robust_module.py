import logging
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from moeapps.errors import (
    ArgumentError,
    CollapseWarning,
    ConfigError,
    GateError,
    MissingExtraError,
    UnknownNameError,
)
from moeapps.vision.figures import CAPTIONS, figures
from moeapps.vision.robust.datamodules import PixelBatches, PixelData
from moeapps.vision.robust.modules import AdversarialClassifier
from moeapps.vision.robust.suites import AutoAttack

pytest.importorskip("sklearn", reason='needs pip install "moeapps[vision]"')
MIXTURE = {"backbone": "small_cnn", "router_depth": 8, "router_widths": [4, 6, 8]}
FAST = {"epsilon": 0.1, "steps": 1, "on_collapse": "warn"}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def trained(epochs=1, batches=3, model="advmoe", model_args=MIXTURE, validate=False, **more):
    pl.seed_everything(0, verbose=False)
    module = AdversarialClassifier(model, model_args=model_args, **{**FAST, **more})
    data = PixelData("digits", batch_size=32, val_share=0.1 if validate else 0.0)
    trainer = pl.Trainer(
        max_epochs=epochs, limit_train_batches=batches, logger=False, limit_val_batches=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, trainer, data


pytestmark = [
    pytest.mark.filterwarnings("ignore::moeapps.errors.CollapseWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"router_objective": "trades"},
        {"scheme": "joint"},
        {"cover": 0.5, "adversaries": "separate"},
        {"model_args": {**MIXTURE, "routing": "per_layer"}},
    ],
    ids=["released", "trades", "joint", "covered", "per_layer"],
)
def test_both_parts_learn(more):
    module, _, _ = trained(**more)
    torch.manual_seed(0)
    pl.seed_everything(0, verbose=False)
    fresh = AdversarialClassifier(
        model_args=more.get("model_args", MIXTURE), num_classes=10, in_channels=1
    )
    for part in ("router_parameters", "network_parameters"):
        before, after = getattr(fresh.model, part)(), getattr(module.model, part)()
        assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))
    assert module.usage.sum(-1).allclose(torch.ones(len(module.usage)))


def test_each_turn_changes_its_own_part_only():
    pl.seed_everything(0, verbose=False)
    module = AdversarialClassifier(model_args=MIXTURE, num_classes=10, in_channels=1, **FAST)
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    parts = [list(module.model.network_parameters()), list(module.model.router_parameters())]

    class Optimizer(torch.optim.SGD):
        pass

    for turn, (name, mine) in enumerate((("_network_turn", 0), ("_router_turn", 1))):
        before = [[p.detach().clone() for p in part] for part in parts]
        module.manual_backward = lambda loss: loss.backward()
        getattr(module, name)(Optimizer(parts[turn], lr=0.1), images, labels)
        changed = [
            any(not torch.equal(b, a) for b, a in zip(old, new, strict=True))
            for old, new in zip(before, parts, strict=True)
        ]
        assert changed == [mine == 0, mine == 1]


def test_groups_are_made_once_after_random_pathways():
    module, _, _ = trained(epochs=2, router_objective="groups", group_after=1)
    assert module.groups.bincount().tolist() == [5, 5]
    assert not module.grouping
    assert module.confusion.sum() == 0


def test_a_dense_network_trains_in_the_same_frame_and_is_tested():
    arguments = {"backbone": "small_cnn", "ratio": 0.25}
    module, trainer, data = trained(
        model="dense_cnn", model_args=arguments, batches=20, test_steps=2, validate=True
    )
    assert not module.alternates
    (numbers,) = trainer.test(module, datamodule=data, verbose=False)
    worst = numbers["test/robust_accuracy/adaptive"]
    assert worst <= numbers["test/robust_accuracy/fixed"] <= numbers["test/accuracy"]
    assert worst <= numbers["test/accuracy/forced"]


def test_training_repeats_bit_by_bit():
    first, second = trained(cover=0.5)[0], trained(cover=0.5)[0]
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_rate_ends_near_zero():
    _, trainer, _ = trained(epochs=2)
    assert all(o.param_groups[0]["lr"] < 1e-6 for o in trainer.optimizers)


class Checkpoints(pl.Callback):
    """Write one after each epoch."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(("batches", "epochs"), [(2, (0, 1)), (None, (0,))])
def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path, batches, epochs):
    """Two optimisers, their schedules, groups made in epoch 1, random routes and crops."""

    def run(folder, checkpoint=None):
        folder.mkdir()
        pl.seed_everything(0, verbose=False)
        module = AdversarialClassifier(
            model_args=MIXTURE, router_objective="groups", group_after=1, cover=0.5,
            adversaries="separate", **FAST,
        )  # fmt: skip
        data = PixelData("digits", batch_size=400, pad=1, flip=True, val_share=0.1)
        trainer = pl.Trainer(
            max_epochs=3, limit_train_batches=batches, logger=False, limit_val_batches=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            accelerator="cpu", callbacks=[Checkpoints(folder)],
        )  # fmt: skip
        torch.rand(0 if checkpoint is None else 17)  # what was drawn before must not matter
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        return module.state_dict()

    unbroken = run(tmp_path / "a")
    for epoch in epochs:
        resumed = run(tmp_path / f"b{epoch}", tmp_path / "a" / f"{epoch}.ckpt")
        for name, value in unbroken.items():
            assert torch.equal(resumed[name], value), (epoch, name)


def collapsed(**more):
    module = AdversarialClassifier(model_args=MIXTURE, num_classes=10, in_channels=1, **more)
    module._usage = torch.tensor([[99, 1]])
    return module


@pytest.mark.filterwarnings("default::moeapps.errors.CollapseWarning")
def test_a_collapsed_router_is_an_error_or_a_warning():
    with pytest.raises(GateError, match=r"99\.0%"):
        collapsed().on_train_epoch_end()
    with pytest.warns(CollapseWarning, match="alternating"):
        collapsed(on_collapse="warn").on_train_epoch_end()
    module = collapsed()
    module._usage = torch.tensor([[97, 3]])
    module.on_train_epoch_end()


def test_a_router_that_is_not_finite_ends_the_training():
    module = AdversarialClassifier(model_args=MIXTURE, num_classes=10, in_channels=1, **FAST)
    module.manual_backward = lambda loss: loss.backward()
    optimizer = torch.optim.SGD(module.model.router_parameters(), lr=0.1)
    with torch.no_grad():
        module.model.router.score.linear.weight.fill_(torch.nan)
    with pytest.raises(GateError, match="lower lr"):
        module._router_turn(optimizer, torch.rand(4, 1, 8, 8), torch.arange(4))


def test_bad_arguments():
    with pytest.raises(UnknownNameError, match="alternating"):
        AdversarialClassifier(scheme="alternate")
    with pytest.raises(ArgumentError, match="cover=2"):
        AdversarialClassifier(cover=2)
    with pytest.raises(ArgumentError, match="group_after"):
        AdversarialClassifier(router_objective="groups", scheme="joint")
    for wrong in ({"epsilon": 0.0}, {"steps": 0}, {"test_steps": 0}):
        with pytest.raises(ArgumentError, match="expected a positive epsilon"):
            AdversarialClassifier(**wrong)
    with pytest.raises(ArgumentError, match="batch norm"):
        PixelData(batch_size=1)
    module = AdversarialClassifier()
    module._trainer = type("Trainer", (), {"datamodule": None})()
    with pytest.raises(ConfigError, match="datamodule=PixelData"):
        module.setup("fit")
    with pytest.raises(ConfigError, match="Set val_share="):
        trained(select="best")


def test_normalised_images_are_refused_before_they_are_attacked():
    module = AdversarialClassifier(model_args=MIXTURE, num_classes=10, in_channels=1, **FAST)
    batch = {"image": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    with pytest.raises(ArgumentError, match="Leave normalisation to the network"):
        module.training_step(batch, 0)


def test_batches_hold_every_image_once_in_another_order_each_time():
    images = torch.arange(13.0).view(13, 1, 1, 1) / 13
    loader = PixelBatches(images, torch.arange(13), 4, shuffle=True)
    orders = [torch.cat([batch["index"] for batch in loader]) for _ in range(2)]
    assert len(loader) == 3  # a batch of one has no batch norm
    assert len(orders[0].unique()) == 12
    assert not torch.equal(*orders)
    still = PixelBatches(images, torch.arange(13), 4)
    assert torch.cat([batch["index"] for batch in still]).tolist() == list(range(13))


def test_crops_and_flips_keep_the_pixels():
    images = torch.rand(6, 1, 5, 5)
    loader = PixelBatches(images, torch.zeros(6).long(), 6, pad=1, flip=True, seed=1)
    (batch,) = loader
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    for new, old in zip(batch["image"], padded, strict=True):
        windows = [side[:, i : i + 5, j : j + 5] for side in (old, old.flip(-1))
                   for i in range(3) for j in range(3)]  # fmt: skip
        assert any(torch.equal(new, window) for window in windows)


def test_a_report_shows_what_every_attack_leaves():
    module, trainer, data = trained(
        model="dense_cnn", model_args={"backbone": "small_cnn", "ratio": 0.25}, test_steps=1
    )
    trainer.test(module, datamodule=data, verbose=False)
    drawn = figures(module.results(), {})
    labels = [text.get_text() for text in drawn["attacks"].axes[0].get_xticklabels()]
    assert labels == ["clean", *module.fixed, *module.adaptive, "worst case"]
    assert len(module.results()["attack_correct/pgd"]) == 597
    epochs = {name: np.arange(2.0) for name in ("epoch", "val/accuracy", "val/robust_accuracy")}
    assert set(figures({}, epochs)) == {"curves_robust"} <= set(CAPTIONS)


def test_autoattack_is_one_of_the_fixed_attacks_and_wanted_before_training(monkeypatch):
    module = AdversarialClassifier(
        "dense_cnn", model_args={"backbone": "small_cnn"}, num_classes=7, epsilon=0.3,
        autoattack=True,
    )  # fmt: skip
    assert module.fixed["autoattack"] == AutoAttack(0.3, 7)
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps torchattacks"):
        module.setup("fit")
    module.setup("predict")


def test_labels_out_of_range_are_named():
    module = AdversarialClassifier(
        "dense_cnn", model_args={"backbone": "small_cnn"}, num_classes=3, in_channels=1, **FAST
    )
    batch = {"image": torch.rand(2, 1, 8, 8), "label": torch.tensor([0, 3])}
    with pytest.raises(ArgumentError, match="label 3 is out of range: expected 0 to 2"):
        module.training_step(batch, 0)
