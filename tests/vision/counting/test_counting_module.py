"""Training, counting and testing of density networks through Lightning."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from moeapps import errors
from moeapps.vision import CountingData, CrowdCounter
from moeapps.vision.counting.counted import examples_of
from moeapps.vision.counting.losses import counting_terms
from moeapps.vision.datasets.points import PointImages, PointSplits

FRAME = {"backbone": "plain", "backbone_args": {"widths": [4, 8, 8], "depth": 1},
         "strides": [2, 4, 8], "decoder_width": 4, "expert_width": 4}  # fmt: skip
GATES = {"gate_widths": [4], "second_widths": [4], "attention_widths": [4]}
ARGS = {
    "hmode": FRAME | GATES,
    "flat_density_mixture": FRAME | {"gate_widths": [4]},
    "single_density": FRAME,
}
FEW = {"train": 8, "val": 3, "test": 5, "size": 48}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
]


def counter(model="hmode", **options):
    torch.manual_seed(0)
    options = {"lr": 1e-3} | options
    return CrowdCounter(model, model_args=ARGS[model], **options)


def made(**options):
    return CountingData(**({"dataset_args": FEW, "batch_size": 4, "sigma": 2.0} | options))


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_epochs": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", **quiet, **limits | options)


@pytest.mark.parametrize("model", ARGS)
def test_every_counter_trains_and_logs_the_errors_of_the_literature(model, tmp_path):
    module, data = counter(model), made()
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    assert {"val/mae", "val/rmse", "train/loss"} <= set(run.callback_metrics)
    (found,) = run.test(module, datamodule=data, verbose=False)
    assert {f"test/{n}" for n in ("mae", "rmse", "nae", "game/0", "game/1", "game/3")} <= set(found)
    assert found["test/game/0"] == pytest.approx(found["test/mae"], rel=1e-6)
    levels = [found[f"test/game/{level}"] for level in range(4)]
    assert levels == sorted(levels)
    buckets = {name for name in found if name.startswith("test/mae/")}
    assert buckets <= {f"test/mae/{name}" for name in ("0", "1-100", "101-500", "501+")}


def test_errors_are_those_of_the_counts_by_hand(tmp_path):
    module, data = counter(), made()
    run = trainer(tmp_path)
    (found,) = run.test(module, datamodule=data, verbose=False)
    predicted = run.predict(module, datamodule=data)
    true = np.concatenate([[len(points)] for points in data.part("test").points])
    counts = np.concatenate([batch["count"].numpy() for batch in predicted])
    assert np.concatenate([batch["index"].numpy() for batch in predicted]).tolist() == [*range(5)]
    gaps = counts - true
    assert found["test/mae"] == pytest.approx(np.abs(gaps).mean(), rel=1e-6)
    assert found["test/rmse"] == pytest.approx(np.sqrt((gaps**2).mean()), rel=1e-6)
    assert found["test/nae"] == pytest.approx((np.abs(gaps) / true).mean(), rel=1e-6)
    results = module.results()
    np.testing.assert_allclose(results["counting/predicted"], counts, rtol=1e-6)
    np.testing.assert_array_equal(results["counting/true"], true)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    module, data = counter(relative=0.5, importance=3.0, attention=0.25), made()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    _, aux = module.model(batch["image"], return_aux=True)
    model = module.model
    terms = counting_terms(
        aux, batch["density"], label_scale=model.label_scale, stride=model.stride,
        gate_stride=model.gate_stride,
    )  # fmt: skip
    expected = (
        terms["levels"] + 0.5 * terms["relative"] + 3 * terms["importance"]
        + 0.25 * terms["attention"]
    )  # fmt: skip
    module.eval()
    module.train()
    torch.testing.assert_close(module.weighted(module.terms(batch)), expected)


@pytest.mark.parametrize("model", ARGS)
def test_a_few_steps_learn_to_count_a_small_batch(model):
    module, data = counter(model).train(), made(dataset_args=FEW | {"people": 12.0}, flip=False)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        module.weighted(module.terms(batch)).backward()
        optimizer.step()
    counts = module.model(batch["image"]).sum((1, 2, 3))
    error = (counts - batch["count"]).abs().mean()
    assert error < 0.5 * (batch["count"] - batch["count"].mean()).abs().mean()


def test_pixels_outside_the_mask_change_neither_loss_nor_count(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 48), bool)
    mask[:, 16:] = True
    image = rng.integers(0, 256, (32, 48, 3), np.uint8)
    points = rng.random((9, 2)) * (48, 32)
    part = PointImages([image] * 2, [points] * 2, ["a", "b"], [mask] * 2)
    data = CountingData.from_splits(PointSplits(part, part, part, "made"), batch_size=2)
    module = counter().eval()
    (found,) = trainer(tmp_path).test(module, datamodule=data, verbose=False)
    with torch.no_grad():
        density = module.model(torch.from_numpy(image).movedim(-1, 0)[None].float() / 255)
    inside = float(density[..., 16:].double().sum())
    true = (points[:, 0] >= 16).sum()
    assert found["test/mae"] == pytest.approx(abs(inside - true), rel=1e-5)
    batch = next(iter(data.test_dataloader()))
    spoilt = batch | {"density": batch["density"].clone()}
    spoilt["density"][..., :16] = 7.0
    assert torch.allclose(
        module.weighted(module.terms(batch)), module.weighted(module.terms(spoilt))
    )


def test_tiles_count_as_the_whole_does_where_the_halo_covers_the_reach():
    module = counter("single_density").eval()
    image = torch.rand(3, 96, 160)
    whole = module.count_map(image)
    assert whole.shape == (1, 96, 160)
    tiled = module.count_map(image, tile=128)
    assert tiled.shape == whole.shape
    # The decoder's corners are aligned, so tiles differ from the whole by what interpolation does.
    assert float(tiled.sum()) == pytest.approx(float(whole.sum()), rel=0.02)
    assert module.count_map(image[:, :5, :3]).shape == (1, 5, 3)


def test_images_of_any_size_in_one_evaluation(tmp_path):
    sizes = [(17, 40), (33, 23), (16, 9)]
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    part = PointImages(images, [np.array([[2.0, 3.0]])] * 3, list("abc"))
    data = CountingData.from_splits(PointSplits(part, part, part, "made"), batch_size=1)
    run = trainer(tmp_path)
    module = counter()
    run.fit(module, datamodule=data)
    (found,) = run.test(module, datamodule=data, verbose=False)
    assert np.isfinite(found["test/mae"])
    assert {int(example["index"]) for example in examples_of(module.results())} == {0, 1, 2}


def test_best_needs_validation_images(tmp_path):
    module = counter(select="best")
    assert (module.monitor, module.monitor_mode) == ("val/mae", "min")
    data = made(dataset_args=FEW | {"val": 0}, val_share=0.0)
    with pytest.raises(errors.ConfigError, match="val_share"):
        trainer(tmp_path).fit(module, datamodule=data)
    trainer(tmp_path).fit(counter(), datamodule=data)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"milestones": [1, 2], "gamma": 0.5}, [1e-3, 5e-4, 2.5e-4]),
        ({"milestones": []}, [1e-3, 1e-3, 1e-3]),
    ],
)
def test_the_rate_falls_at_milestones(options, rates, tmp_path):
    seen = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    run = trainer(tmp_path, max_epochs=3, callbacks=[Watch()], limit_val_batches=0)
    run.fit(counter("single_density", **options), datamodule=made())
    assert seen == pytest.approx(rates)


def test_the_cosine_ends_at_nothing(tmp_path):
    run = trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    run.fit(counter("single_density", cosine=True, warmup_steps=1), datamodule=made())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_one_seed_gives_one_result(tmp_path):
    def errors_of():
        module, data = counter(), made()
        torch.manual_seed(1)
        run = trainer(tmp_path)
        run.fit(module, datamodule=data)
        return run.test(module, datamodule=data, verbose=False)

    assert errors_of() == errors_of()


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    module, data = counter(), made()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    batch["image"][0, 0, 0, 0] = float("nan")
    with pytest.raises(errors.ArgumentError, match="images that are not finite"):
        module.weighted(module.terms(batch))


@pytest.mark.parametrize(
    "options",
    [
        {"level_weights": [1.0, 2.0]}, {"level_weights": [1.0, 2.0, 0.0]}, {"relative": -1.0},
        {"lr": 0.0},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options):
    with pytest.raises(errors.ArgumentError, match="cannot be"):
        counter(**options)


def test_names_that_are_not_known_are_refused():
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'best'"):
        counter(select="bset")
    with pytest.raises(errors.UnknownNameError, match="hmode"):
        CrowdCounter("hmod")


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    def run(epochs, **options):
        module = counter("single_density", milestones=[1])
        one = trainer(tmp_path, max_epochs=epochs, limit_val_batches=1)
        one.fit(module, datamodule=made(crop=32), **options)
        return one, module

    _, straight = run(2)
    first, _ = run(1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = run(2, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for one, two in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
