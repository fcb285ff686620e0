"""Restorers through Lightning and the command line, with their report."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from moeapps import errors
from moeapps.cli.configs import check_config
from moeapps.cli.main import main
from moeapps.training.report import Report, markdown
from moeapps.vision import ImageRestorer, RestorationData
from moeapps.vision.datasets.paired_images import PairedSplits
from moeapps.vision.datasets.weather_photos import under_weather
from moeapps.vision.figures import CAPTIONS
from moeapps.vision.figures import figures as all_figures
from moeapps.vision.restoration.metrics import psnr, ssim
from moeapps.vision.restoration.photos import Photo
from moeapps.vision.restoration.restored import LARGEST, Restored, examples_of
from moeapps.vision.sections import sections

pl = pytest.importorskip("lightning.pytorch", reason='needs pip install "moeapps[training]"')
CONFIGS = sorted((Path(__file__).parents[3] / "examples" / "configs" / "vision").glob("*.yaml"))
SMALL = {
    "embed_dim": 16, "depth": 1, "num_heads": 2, "head_dim": 8, "head_channels": 4,
    "tail_channels": [4, 4], "residual_learning": True,
}  # fmt: skip


def restoring(path):
    return "ImageRestorer" in path.read_text()


def trainer(**args):
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **args,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    made = RestorationData(
        weather=["haze", "night"], dataset_args={"variants": 1, "short_side": 64}, crop=16,
    )  # fmt: skip
    made.setup("fit")
    return made


@pytest.fixture(scope="module")
def tested(data):
    module = ImageRestorer("mofme", model_args={**SMALL, "num_experts": 3}, lr=1e-3)
    run = trainer()
    run.fit(module, datamodule=data)
    (metrics,) = run.test(module, datamodule=data, verbose=False)
    return module, metrics


def test_every_restoration_set_has_a_configuration():
    named = {yaml.safe_load(p.read_text())["data"]["init_args"]["dataset"]
             for p in CONFIGS if restoring(p)}  # fmt: skip
    assert named == {
        "allweather", "snow100k", "raindrop", "outdoor-rain", "rain13k", "raincityscapes", "reside",
        "bundled-photos", "bsds500", "photo-folder",
    }  # fmt: skip


@pytest.mark.parametrize("path", [p for p in CONFIGS if restoring(p)], ids=lambda p: p.stem)
def test_configurations_build(path):
    config = yaml.safe_load(path.read_text())
    check_config(config, source=str(path))
    arguments = config["model"]["init_args"]
    with torch.device("meta"):
        assert isinstance(ImageRestorer(**arguments), ImageRestorer)
    RestorationData(**config["data"]["init_args"])


def test_scores_are_the_means_over_whole_images(tested, data):
    module, metrics = tested
    module.eval()
    found = {0: [], 1: []}
    for batch in data.test_dataloader():
        restored = module.model(batch["image"]).detach().clamp(0, 1)
        scores = (psnr(restored, batch["target"]), ssim(restored, batch["target"]))
        found[int(batch["task"])].append([float(score) for score in scores])
    for task, name in enumerate(("haze", "night")):
        for column, score in enumerate(("psnr", "ssim")):
            mean = np.mean(found[task], 0)[column]
            assert metrics[f"test/{score}/{name}"] == pytest.approx(mean, abs=1e-3)
    whole = np.mean(found[0] + found[1], 0)
    assert metrics["test/psnr"] == pytest.approx(whole[0], abs=1e-3)
    assert module.trainer.callback_metrics.keys() >= {"test/psnr", "test/ssim"}


def test_results_make_the_figures_and_the_table(tested):
    module, metrics = tested
    results = module.results()
    drawn = all_figures(results, {"epoch": np.array([0.0]), "val/psnr": np.array([20.0])})
    expected = {
        "before_after", "gains", "weather_gates", "weather_gate_maps", "curves_restoration",
    }  # fmt: skip
    assert set(drawn) == expected
    assert expected <= set(CAPTIONS)
    (section,) = sections(results)
    assert [row[0] for row in section.table.rows] == ["haze", "night", "all"]
    assert section.table.rows[-1][3] == f"{metrics['test/psnr']:.2f}"
    assert "Restoration by weather" in markdown(Report("r", "s", [], [section]))
    assert results["restoration/gates"].shape == (16, 1, 3)
    np.testing.assert_allclose(results["restoration/gates"].sum(-1), 1, atol=1e-5)


def test_a_network_without_gates_has_no_gate_figures(data):
    module = ImageRestorer("restoration_vit", model_args=SMALL)
    trainer(limit_test_batches=3).test(module, datamodule=data, verbose=False)
    assert set(all_figures(module.results(), {})) == {"before_after", "gains"}


def test_runs_that_restored_nothing_have_none_of_this():
    assert sections({}) == []
    assert all_figures({}, {}) == {}


def test_tiles_give_nearly_the_whole_image_and_sizes_are_kept():
    module = ImageRestorer("mofme", model_args=SMALL).eval()
    image = torch.rand(3, 61, 43)
    whole = module.restore(image)
    for tile in (32, "auto"):
        tiled = module.restore(image, tile=tile)
        assert tiled.shape == whole.shape == (3, 61, 43)
        assert float(psnr(tiled[None], whole[None])) > 30
    assert module.restore(torch.rand(3, 1, 1)).shape == (3, 1, 1)


def test_learning_the_change_begins_close_to_the_identity():
    torch.manual_seed(0)
    module = ImageRestorer("mofme", model_args=SMALL).eval()
    image = torch.rand(3, 32, 32)
    assert float(psnr(module.restore(image)[None], image[None])) > 40


def test_large_images_are_kept_by_their_middle():
    kept = Restored(("haze",))
    image = torch.rand(3, LARGEST + 40, 20)
    kept.show(0, input=image, restored=image, target=image, gates=torch.rand(2, 90, 5))
    (found,) = examples_of(kept.arrays()).values()
    assert found["input"].shape == (LARGEST, 20, 3)
    assert found["gates"].shape == (2, 80, 5)
    middle = (255 * image[:, 20:-20]).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(found["input"], middle)


def test_the_rate_warms_up_and_ends_low(data):
    module = ImageRestorer("restoration_vit", model_args=SMALL, lr=1e-2, min_lr=1e-4)
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    made = RestorationData(
        weather=["night"], dataset_args={"variants": 1, "short_side": 64}, crop=8, batch_size=1,
        crops_per_image=4,
    )  # fmt: skip
    trainer(callbacks=[Watch()], limit_val_batches=0).fit(module, datamodule=made)
    assert len(rates) == 32
    assert max(rates) == pytest.approx(1e-2, rel=0.01)
    assert np.argmax(rates) <= 3
    assert rates[-1] == pytest.approx(1e-4, rel=0.5)


def test_what_cannot_be_is_refused(data):
    with pytest.raises(errors.ArgumentError, match="weights"):
        ImageRestorer("mofme", model_args=SMALL, perceptual=0.04)
    with pytest.raises(errors.ArgumentError, match="min_lr"):
        ImageRestorer("mofme", model_args=SMALL, lr=1e-6, min_lr=1e-3)
    with pytest.raises(errors.UnknownNameError, match="best"):
        ImageRestorer("mofme", model_args=SMALL, select="bests")
    with pytest.raises(errors.UnknownNameError, match="mofme"):
        ImageRestorer("mofm")
    module = ImageRestorer("restoration_vit", model_args=SMALL)
    broken = torch.full((1, 3, 8, 8), float("nan"))
    with pytest.raises(errors.ArgumentError, match="finite"):
        module.training_step({"image": broken, "target": broken}, 0)
    module = ImageRestorer("restoration_vit", model_args=SMALL, select="best")
    part = under_weather([Photo("a", np.zeros((16, 16, 3), np.uint8))], ["night"])
    splits = PairedSplits(part, None, part, "made")
    nothing = RestorationData.from_splits(splits, val_share=0.0)
    with pytest.raises(errors.ConfigError, match="val_share"):
        trainer().fit(module, datamodule=nothing)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_test_and_report_from_the_command_line(tmp_path, capsys):
    (path,) = [p for p in CONFIGS if p.stem == "mofme_bundled_photos"]
    args = yaml.safe_load(path.read_text())["model"]["init_args"]["model_args"]
    small = {**args, **SMALL}
    more = (
        "--trainer.max_epochs", "2", "--data.weather", "[rain]", "--data.crop", "16",
        "--data.dataset_args", "{variants: 1, short_side: 48}",
        "--model.model_args", yaml.safe_dump(small, default_flow_style=True).strip(),
    )  # fmt: skip
    assert main(["fit", "--config", str(path), "--runs", str(tmp_path), *more]) == 0
    (run,) = (tmp_path / "vision" / "mofme_bundled-photos").iterdir()
    text = (run / "report.md").read_text()
    for part in ("Restoration by weather", "before_after.png", "weather_gates.png", "synthetic"):
        assert part in text
    assert "val/psnr" in (run / "metrics.csv").read_text().splitlines()[0]
    capsys.readouterr()
    assert main(["test", "--ckpt", str(run)]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "test/psnr/rain" in x)
    assert line.split()[-1] in text
    assert main(["report", str(run)]) == 0
