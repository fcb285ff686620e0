"""fit, resume, validate, test, predict and export of a long-tail run from the command line."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import moeapps
from moeapps.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:Task:UserWarning")
CONFIGS = Path(__file__).parents[2] / "examples" / "configs" / "vision"
TINY = (
    "--trainer.max_epochs", "2", "--checkpoint-seconds", "0", "--data.foreign", "[pair-digits-lt]",
)  # fmt: skip


def fit(runs, *more):
    config = str(CONFIGS / "ride_digits_lt.yaml")
    assert main(["fit", "--config", config, "--runs", str(runs), *TINY, *more]) == 0
    (run,) = (runs / "vision" / "ride_digits-lt").iterdir()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"))


def test_report_has_figures_sections_and_says_which_weights(run):
    text = (run / "report.md").read_text()
    assert "Weights at the end of the training" in text
    drawn = ("groups", "classes", "reliability", "disagreement", "engagement")
    for part in (
        "Accuracy by class frequency",
        "Hardest classes",
        *(f"{one}.png" for one in drawn),
    ):
        assert part in text
    for part in ("| wrong answers |", "| images of the rarest", "| images of pair-digits-lt, none"):
        assert part in text
    assert "| test/foreign/pair-digits-lt/auroc |" in text
    metrics = (run / "metrics.csv").read_text().splitlines()[0]
    for name in ("train/loss", "val/balanced_accuracy", "val/accuracy/few"):
        assert name in metrics


def test_test_repeats_the_numbers_of_the_report(run, capsys):
    assert main(["validate", "--ckpt", str(run)]) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt", str(run), "--data.batch_size", "16"]) == 0
    line = next(
        line for line in capsys.readouterr().out.splitlines() if "balanced_accuracy" in line
    )
    assert line.split()[-1] in (run / "report.md").read_text()


def test_predictions_have_a_row_per_test_image_and_say_how_many_experts(run, tmp_path):
    assert main(["predict", "--ckpt", str(run), "--out", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(500))
    assert {row["experts"] for row in rows} <= {"1", "2", "3"}
    found = np.array([[float(row[f"probability_{j}"]) for j in range(10)] for row in rows])
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert (found.argmax(1) == [int(row["label"]) for row in rows]).all()


def test_exports_give_what_the_run_gives(run, tmp_path):
    images = torch.randn(7, 1, 8, 8)
    assert main(["export", str(run), "--out", str(tmp_path)]) == 0
    network = moeapps.load_model(tmp_path)
    expected = network(images).softmax(-1)
    assert main(["export", str(run), "--format", "torch", "--out", str(tmp_path)]) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    found = program(images)["probability"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_broken_off_run_resumes_to_the_same_numbers(run, tmp_path, monkeypatch):
    from moeapps.vision.longtail.modules import LongTailClassifier

    step = LongTailClassifier.training_step

    def breaks(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LongTailClassifier, "training_step", breaks)
    config = str(CONFIGS / "ride_digits_lt.yaml")
    assert main(["fit", "--config", config, "--runs", str(tmp_path), *TINY]) != 0
    monkeypatch.setattr(LongTailClassifier, "training_step", step)
    (broken,) = (tmp_path / "vision" / "ride_digits-lt").iterdir()
    assert main(["fit", "--resume", str(broken)]) == 0

    def numbers(folder):
        text = (folder / "report.md").read_text()
        return [line for line in text.splitlines() if line.startswith("| test/")]

    assert numbers(broken) == numbers(run)
