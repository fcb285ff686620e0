"""moeapps predict on photos: from the folder to the exit code, for the runs of every task."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from moeapps.cli.main import main
from moeapps.vision.photo_files import read_photo, write_photo

pytest.importorskip("PIL", reason='needs pip install "moeapps[vision]"')

CONFIGS = Path(__file__).parents[2] / "examples" / "configs" / "vision"
COUNTING = (
    "--data.dataset_args", "{train: 4, val: 1, test: 2, size: 48}", "--data.batch_size", "2",
    "--model.model_args",
    "{backbone: plain, strides: [2, 4], slim: true, decoder_width: 4, gate_widths: [4], "
    "second_widths: [4], attention_widths: [4]}",
)  # fmt: skip


def fit(runs, config, *more):
    words = ("--runs", str(runs), "--trainer.max_epochs", "1", *more)
    assert main(["fit", "--config", str(CONFIGS / config), *words]) == 0
    (run,) = runs.glob("*/*/*")
    return run


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    runs = tmp_path_factory.mktemp("counting")
    return fit(runs, "hmode_rendered_crowds.yaml", *COUNTING)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 61, 3)), ("b.jpg", (30, 200, 3)), ("pixel.png", (1, 1))):
        write_photo(folder / name, rng.integers(0, 256, size, dtype=np.uint8))
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def counts(path):
    return [float(row["count"]) for row in table(path)]


def predict(run, source, target, *more):
    words = ["predict", "--ckpt", str(run), "--input", str(source), "--output", str(target), *more]
    return main(words)


def test_counts_of_a_folder_are_those_of_the_module(counter, photos, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "out"
    assert predict(counter, photos, out) == 0
    assert f"3 photos counted: {out / 'counts.csv'}" in " ".join(capsys.readouterr().out.split())
    assert [row["file"] for row in table(out / "counts.csv")] == ["a.png", "b.jpg", "pixel.png"]
    assert {p.name for p in (out / "overlays").iterdir()} == {"a.png", "b.png", "pixel.png"}
    from moeapps.cli.evaluate import find_checkpoint, trained_module

    module, _ = trained_module(find_checkpoint(str(counter))[1])
    image = torch.from_numpy(read_photo(photos / "a.png")).permute(2, 0, 1) / 255
    assert counts(out / "counts.csv")[0] == pytest.approx(
        float(module.count_map(image).sum()), abs=0.006
    )


def test_a_restorer_writes_photos_of_the_same_size_and_strips(photos, tmp_path, capsys):
    small = (
        "{num_experts: 2, embed_dim: 8, depth: 1, num_heads: 1, head_dim: 8, patch_size: 4, "
        "head_channels: 4, tail_channels: [4, 4]}"
    )
    run = fit(
        tmp_path / "runs", "mofme_bundled_photos.yaml", "--model.model_args", small,
        "--data.dataset_args", "{variants: 1, short_side: 32}", "--data.weather", "[haze]",
        "--data.crop", "16",
    )  # fmt: skip
    capsys.readouterr()
    out = tmp_path / "out"
    assert predict(run, photos, out, "--tile", "32") == 0
    assert f"3 photos restored: {out / 'restored.csv'}" in " ".join(capsys.readouterr().out.split())
    for name, written in (("a.png", "a.png"), ("b.jpg", "b.png"), ("pixel.png", "pixel.png")):
        assert read_photo(out / written).shape == read_photo(photos / name).shape
        assert (out / "side_by_side" / written).is_file()
    from moeapps.cli.evaluate import find_checkpoint, trained_module

    module, _ = trained_module(find_checkpoint(str(run))[1])
    image = torch.from_numpy(read_photo(photos / "a.png")).permute(2, 0, 1) / 255
    expected = (module.restore(image, tile=32) * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(read_photo(out / "a.png"), expected)


def test_broken_photos_are_named_and_told_by_the_exit_code(counter, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:99])
    out = tmp_path / "out"
    capsys.readouterr()
    assert predict(counter, photos, out) == 1
    said = capsys.readouterr()
    assert "3 photos counted" in said.out
    errors = " ".join(said.err.split())
    assert "broken.png cannot be decoded" in errors
    assert "1 photos were left out" in errors
    (photos / "broken.png").unlink()
    assert predict(counter, photos, out) == 0
    assert "0 photos counted, 3 were there already" in " ".join(capsys.readouterr().out.split())
    assert predict(counter, photos, out, "--tile", "32") == 0  # other tiles, other numbers
    assert "3 photos counted: " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("source", "words"),
    [("none", "is not there"), ("empty", "holds no photos"), ("photos", "photos themselves")],
)
def test_folders_that_cannot_be_are_told(counter, photos, tmp_path, capsys, source, words):
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    assert predict(counter, tmp_path / source, tmp_path / "photos") == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_tile_that_cannot_be_leaves_out_every_photo_with_the_reason(
    counter, photos, tmp_path, capsys
):
    assert predict(counter, photos, tmp_path / "out", "--tile", "33") == 1
    assert "Choose 32" in " ".join(capsys.readouterr().err.split())


def test_interruption_says_how_to_go_on(counter, photos, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("moeapps.vision.folder_predictions.read_photo", interrupt)
    assert predict(counter, photos, tmp_path / "out") == 130
    assert "goes on where it stopped" in " ".join(capsys.readouterr().err.split())


def test_classifiers_give_probabilities(photos, tmp_path):
    run = fit(tmp_path / "runs", "ride_digits_lt.yaml")
    assert predict(run, photos, tmp_path / "out") == 0
    rows = table(tmp_path / "out" / "probabilities.csv")
    found = np.array([[float(row[f"probability_{k}"]) for k in range(10)] for row in rows])
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert [int(row["label"]) for row in rows] == found.argmax(1).tolist()


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    from rich.console import Console

    from moeapps.cli import predict_photos

    monkeypatch.setattr(predict_photos, "EVERY", 0.0)
    with predict_photos._Progress() as progress:
        progress.show(1, 4, None)
    assert "photo 1/4" in capsys.readouterr().err
    monkeypatch.setattr(
        predict_photos, "messages", lambda: Console(stderr=True, force_terminal=True, width=90)
    )
    with predict_photos._Progress() as progress:
        progress.show(3, 4, "left.png cannot be decoded")
        progress.warn("memory")
    said = capsys.readouterr().err
    assert "left out: left.png" in said
    assert "note: memory" in said
    assert "3/4" in said
