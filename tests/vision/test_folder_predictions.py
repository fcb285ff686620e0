"""Folders of photos, good and bad, through stand-ins for trained modules."""

import csv
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from moeapps.errors import ConfigError, DataNotFoundError
from moeapps.vision.folder_predictions import predict_folder
from moeapps.vision.photo_files import read_photo, write_photo
from moeapps.vision.photo_tasks import SHOWN, overlay, photo_task
from moeapps.vision.tiling import tiled_density, tiled_inference

Image = pytest.importorskip("PIL.Image")


class StandIn(nn.Module):
    """Asks its network through tiles, as the real modules do."""

    def __init__(self, network, **hparams):
        super().__init__()
        self.model, self.hparams = network, hparams
        self.seen = []


class Restorer(StandIn):
    def restore(self, image, *, tile=None):
        self.seen.append((tuple(image.shape), tile))
        return tiled_inference(self.model, image[None], tile)[0]


class Counter(StandIn):
    def count_map(self, image, *, tile=None):
        self.seen.append((tuple(image.shape), tile))
        return tiled_density(self.model, image[None], tile, 4)[0]


class Negative(nn.Module):
    def forward(self, x):
        return 1 - x


class Brightness(nn.Module):
    """A thousandth per white pixel."""

    def forward(self, x):
        return x.mean(1, keepdim=True) / 1000


def restorer(**hparams):
    module = Restorer(Negative(), **hparams)
    return module, photo_task(module)


def photos(folder, *names, size=(30, 40)):
    made = {}
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        write_photo(folder / name, pixels)
        made[name] = pixels
    return made


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"


def test_restored_photos_have_their_size_and_stand_beside_their_own(folders):
    source, target = folders
    made = photos(source, "a.png", "b.png")
    _, task = restorer()
    outcome = predict_folder(task, source, target, run="1")
    assert (outcome.done, outcome.kept, outcome.skipped) == (2, 0, {})
    for name, pixels in made.items():
        assert np.array_equal(read_photo(target / name), 255 - pixels)
        strip = read_photo(target / "side_by_side" / name)
        assert np.array_equal(strip[:, :40], pixels)
        assert np.array_equal(strip[:, -40:], 255 - pixels)
    assert table(outcome.table)[1] == {"file": "b.png", "width": "40", "height": "30"}


def test_counts_are_sums_and_overlays_show_where(folders):
    source, target = folders
    pixels = np.zeros((120, 100, 3), np.uint8)
    pixels[60:80, 50:90] = 255
    write_photo(source / "a.png", pixels)
    outcome = predict_folder(photo_task(Counter(Brightness())), source, target, run="1")
    (row,) = table(outcome.table)
    assert row == {"file": "a.png", "count": "0.80", "width": "100", "height": "120"}
    shown = read_photo(target / "overlays" / "a.png").astype(int)
    assert np.ptp(shown[100:, :40]) == 0  # grey where nobody is
    assert (shown[60:80, 50:90, 0] - shown[60:80, 50:90, 2]).min() > 150


@pytest.mark.parametrize("make", [Restorer, Counter])
def test_photos_of_every_kind_go_through(folders, make):
    source, target = folders
    rng = np.random.default_rng(0)
    write_photo(source / "grey.png", rng.integers(0, 256, (20, 30), dtype=np.uint8))
    rgba = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(source / "rgba.png")
    Image.fromarray(rng.integers(0, 65_536, (20, 30)).astype(np.uint16)).save(source / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba[..., :3]).save(source / "turned.jpg", exif=exif)
    write_photo(source / "pixel.png", np.full((1, 1, 3), 9, np.uint8))
    write_photo(source / "wide.png", rng.integers(0, 256, (64, 12_000), dtype=np.uint8))
    module = make(Negative() if make is Restorer else Brightness(), tile=64)
    outcome = predict_folder(photo_task(module), source, target, run="1")
    assert (outcome.done, outcome.skipped) == (6, {})
    found = {row["file"]: (int(row["width"]), int(row["height"])) for row in table(outcome.table)}
    assert found == {
        "grey.png": (30, 20), "rgba.png": (30, 20), "deep.png": (30, 20), "turned.jpg": (20, 30),
        "pixel.png": (1, 1), "wide.png": (12_000, 64),
    }  # fmt: skip
    assert {tile for _, tile in module.seen} == {64}
    if make is Restorer:
        for name, (width, height) in found.items():
            written = read_photo(target / name.replace(".jpg", ".png"))
            assert written.shape == (height, width, 3)
            assert np.array_equal(written, 255 - read_photo(source / name))
    else:
        assert read_photo(target / "overlays" / "wide.png").shape[1] == SHOWN


def test_broken_photos_are_named_skipped_and_counted(folders):
    source, target = folders
    photos(source, "a.png", "z.png")
    whole = (source / "a.png").read_bytes()
    (source / "cut.png").write_bytes(whole[:200])
    (source / "empty.jpg").touch()
    (source / "text.gif").write_text("not an image")
    said = []
    outcome = predict_folder(
        restorer()[1], source, target, run="1", say=lambda *what: said.append(what)
    )
    assert outcome.done == 2
    assert list(outcome.skipped) == ["cut.png", "empty.jpg", "text.gif"]
    assert [(done, total) for done, total, _ in said] == [(k, 5) for k in range(1, 6)]
    assert [problem is None for *_, problem in said] == [True, False, False, False, True]
    assert str(source / "cut.png") in said[1][2]
    assert [row["file"] for row in table(target / "skipped.csv")] == list(outcome.skipped)
    assert len(table(outcome.table)) == 2
    # Once they are mended, only they are done, and nothing says any more that they are missing.
    photos(source, "cut.png", "empty.jpg", "text.gif")
    again = predict_folder(restorer()[1], source, target, run="1")
    assert (again.done, again.kept, again.skipped) == (3, 2, {})
    assert not (target / "skipped.csv").exists()


def test_a_photo_too_large_for_memory_is_skipped_like_a_broken_one(folders):
    source, target = folders
    photos(source, "a.png")

    class Crowded(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    outcome = predict_folder(photo_task(Restorer(Crowded(), tile=32)), source, target, run="1")
    assert "even with tiles of 32 pixels" in outcome.skipped["a.png"]


def test_an_interrupted_call_goes_on_and_ends_with_the_same_files(folders, tmp_path):
    source, target = folders
    photos(source, "a.png", "b.png", "c.png")

    def stop(done, total, problem):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(restorer()[1], source, target, run="1", say=stop)
    assert [row["file"] for row in table(target / "restored.csv")] == ["a.png", "b.png"]
    journal = target / ".moeapps_predictions.jsonl"
    with journal.open("a") as file:  # as a kill in the middle of a line leaves it
        file.write('{"file": "c.png", "pho')
    module, task = restorer()
    outcome = predict_folder(task, source, target, run="1")
    assert (outcome.done, outcome.kept, len(module.seen)) == (1, 2, 1)
    whole = tmp_path / "whole"
    predict_folder(restorer()[1], source, whole, run="1")
    files = {p.relative_to(whole) for p in whole.rglob("*") if p.is_file()}
    assert files == {p.relative_to(target) for p in target.rglob("*") if p.is_file()}
    for file in files:
        assert (target / file).read_bytes() == (whole / file).read_bytes()


def test_only_what_changed_is_done_again_and_all_of_it_with_another_run(folders):
    source, target = folders
    made = photos(source, "a.png", "b.png")
    predict_folder(restorer()[1], source, target, run="1")
    write_photo(source / "a.png", made["b.png"])
    os.utime(source / "a.png", ns=(1, 1))
    (target / "side_by_side" / "b.png").unlink()
    outcome = predict_folder(restorer()[1], source, target, run="1")
    assert (outcome.done, outcome.kept) == (2, 0)
    assert np.array_equal(read_photo(target / "a.png"), 255 - made["b.png"])
    assert predict_folder(restorer()[1], source, target, run="1").kept == 2
    assert predict_folder(restorer()[1], source, target, run="2").done == 2


def test_names_that_differ_in_their_ending_only_keep_apart(folders):
    source, target = folders
    photos(source, "a.png", "a.bmp", "b.bmp")
    predict_folder(restorer()[1], source, target, run="1")
    assert {p.name for p in target.glob("*.png")} == {"a.png.png", "a.bmp.png", "b.png"}


def test_one_photo_and_the_tile_chosen_once_by_memory(folders):
    source, target = folders
    photos(source, "a.png", "b.png")
    module, task = restorer()
    assert predict_folder(task, source / "b.png", target, run="1").done == 1
    predict_folder(task, source, target / "all", run="1")
    assert {tile for _, tile in module.seen} == {512}
    module = Restorer(Negative())
    predict_folder(photo_task(module, tile=16), source, target / "small", run="1")
    assert {tile for _, tile in module.seen} == {16}


def test_scarce_memory_leaves_room_for_the_halo(folders, monkeypatch):
    source, target = folders
    photos(source, "a.png")
    monkeypatch.setattr("moeapps.vision.photo_tasks.choose_tile", lambda *_, **__: 32)
    module = Counter(Brightness(), halo=30)
    assert predict_folder(photo_task(module), source, target, run="1").done == 1
    assert {tile for _, tile in module.seen} == {120}


def test_places_that_cannot_be_are_told(folders, monkeypatch):
    source, target = folders
    with pytest.raises(DataNotFoundError, match="holds no photos"):
        predict_folder(restorer()[1], source, target, run="1")
    assert not target.exists()
    photos(source, "a.png")
    with pytest.raises(DataNotFoundError, match="none cannot be read"):
        predict_folder(restorer()[1], source / "none", target, run="1")
    for place in (source, source / ".." / "in"):
        with pytest.raises(ConfigError, match="holds the photos themselves"):
            predict_folder(restorer()[1], source, place, run="1")
    with pytest.raises(ConfigError, match=r"Cannot write in .* Choose another"):
        predict_folder(restorer()[1], source, source / "a.png", run="1")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(ConfigError, match=r"out \(Permission denied\)"):
        predict_folder(restorer()[1], source, target, run="1")


def test_a_disk_that_fills_up_stops_the_work_and_says_so(folders, monkeypatch):
    source, target = folders
    photos(source, "a.png", "b.png")

    def full(path, pixels):
        raise ConfigError(f"Cannot write {path} (No space left on device).")

    monkeypatch.setattr("moeapps.vision.folder_predictions.write_photo", full)
    with pytest.raises(ConfigError, match="No space left"):
        predict_folder(restorer()[1], source, target, run="1")
    assert table(target / "restored.csv") == []


class Dark(nn.Module):
    """Class 1 where the image is dark."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


def test_classifiers_get_the_size_channels_and_normalisation_they_were_trained_on(folders):
    from moeapps.vision.longtail.datamodules import LongTailData

    source, target = folders
    write_photo(source / "dark.png", np.full((30, 20, 3), 51, np.uint8))
    write_photo(source / "red.png", np.tile(np.uint8([255, 0, 0]), (9, 9, 1)))
    hparams = {"num_classes": 2, "image_size": [8, 8], "in_channels": 1}
    module = StandIn(Dark(), **hparams)
    data = LongTailData("digits-lt", normalisation="half")  # not set up: only its settings
    outcome = predict_folder(photo_task(module, data), source, target, run="1")
    dark, red = table(outcome.table)
    assert (dark["label"], dark["file"]) == ("1", "dark.png")
    z = (0.2 - 0.5) / 0.5  # a fifth of white, normalised
    assert float(dark["probability_0"]) == pytest.approx(1 / (1 + np.exp(-2 * z)), rel=1e-4)
    z = (0.299 - 0.5) / 0.5
    assert float(red["probability_0"]) == pytest.approx(1 / (1 + np.exp(-2 * z)), rel=1e-4)
    with pytest.raises(ConfigError, match="image_size"):
        photo_task(StandIn(Dark(), num_classes=2))
    with pytest.raises(ConfigError, match="nothing of photos"):
        photo_task(SimpleNamespace(eval=lambda: None, hparams={}))


def test_files_are_resized_and_cropped_as_the_test_images_of_their_set():
    from moeapps.vision.longtail.datamodules import LongTailData

    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(1, 2)

    hparams = {"num_classes": 2, "image_size": [224, 224], "in_channels": 3}
    task = photo_task(StandIn(Look(), **hparams), LongTailData("imagenet-lt"))
    photo = np.random.default_rng(0).integers(0, 256, (300, 512, 3), dtype=np.uint8)
    task.answer(photo)
    from torchvision.transforms import v2

    expected = v2.Compose([
        v2.ToImage(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])(photo)  # fmt: skip
    torch.testing.assert_close(seen[0][0], expected)


def test_an_overlay_of_nothing_is_the_grey_photo():
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    shown = overlay(photo, np.zeros((40, 40)), "0")
    grey = photo.astype(np.float32).mean(2).round().astype(np.uint8)
    assert np.array_equal(shown, np.repeat(grey[..., None], 3, 2))
