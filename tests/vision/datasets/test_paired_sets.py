"""Pairs of photographs: published sets, own folders, made weather."""

import numpy as np
import pytest

from moeapps import errors
from moeapps.vision.datasets import DATASETS, card, list_datasets, load, make_fixture
from moeapps.vision.datasets.paired_images import (
    PairedFolder,
    PairedImages,
    PairedSplits,
    join_pairs,
    read_pair_list,
    read_paired_folder,
)
from moeapps.vision.datasets.weather_photos import read_photo_folder, under_weather
from moeapps.vision.photo_files import write_photo
from moeapps.vision.restoration.photos import Photo

pytest.importorskip("skimage", reason='needs pip install "moeapps[vision]"')

PAIRS = [name for name in list_datasets() if DATASETS[name].startswith("weather_pairs")]


def write(folder, *names, size=(8, 10)):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_photo(folder / name, rng.integers(0, 256, (*size, 3), np.uint8))


@pytest.mark.parametrize("name", PAIRS)
def test_fixture_is_read(name, tmp_path):
    folder = make_fixture(name, tmp_path, images=24, seed=1)
    assert folder.is_relative_to(tmp_path)
    splits = load(name, root=tmp_path)
    assert isinstance(splits, PairedSplits)
    assert splits.val is None
    assert len(splits.train) == 24
    assert splits.train.task_names == splits.test.task_names
    for part in (splits.train, splits.test):
        image, target = part[len(part) - 1]
        assert image.dtype == target.dtype == np.uint8
        assert image.shape == target.shape == (40, 48, 3)
        # the made-up haze raises dark pixels: inputs and targets are not exchanged
        assert image.mean() > target.mean() + 20


@pytest.mark.parametrize("name", PAIRS)
def test_missing_set_tells_its_page(name, tmp_path):
    with pytest.raises(errors.DataNotFoundError, match=card(name).url):
        load(name, root=tmp_path)


def test_tasks_of_allweather(tmp_path):
    make_fixture("allweather", tmp_path, images=24, seed=0)
    splits = load("allweather", root=tmp_path)
    assert splits.task_names == ("snow", "rain", "raindrop")
    assert np.bincount(splits.train.tasks).tolist() == [8, 8, 8]
    only = load("allweather", root=tmp_path, tests=["raindrop"])
    assert set(only.test.tasks) == {2}
    with pytest.raises(errors.UnknownNameError, match="raindrop"):
        load("allweather", root=tmp_path, tests=["raindrops"])


def test_kinds_of_rain_have_a_task_each(tmp_path):
    make_fixture("rain13k", tmp_path, images=20, seed=0)
    splits = load("rain13k", root=tmp_path, tests=["Test2800", "Rain100H"])
    assert splits.task_names == ("rain", "Test2800", "Rain100H")
    assert np.bincount(splits.test.tasks).tolist() == [0, 5, 5]


def test_inputs_without_target_are_named(tmp_path):
    write(tmp_path, "input/a.png", "input/b.jpg", "input/c.png", "gt/b.png")
    with pytest.raises(errors.DataNotFoundError, match=r"2 of 3 .* a\.png, c\.png"):
        PairedFolder(tmp_path, "input", "gt")
    write(tmp_path, "gt/a.png", "gt/c.png", "gt/left_over.png")
    assert PairedFolder(tmp_path, "input", "gt").names == ["a", "b", "c"]
    write(tmp_path, "gt/a.jpg")
    with pytest.raises(errors.DataIntegrityError, match=r"a\.(png|jpg)"):
        PairedFolder(tmp_path, "input", "gt")


def test_folders_that_are_empty_or_missing(tmp_path):
    with pytest.raises(errors.DataNotFoundError, match="is missing"):
        PairedFolder(tmp_path, "input", "gt")
    (tmp_path / "input").mkdir()
    with pytest.raises(errors.DataNotFoundError, match="holds no photos"):
        PairedFolder(tmp_path, "input", "gt")


def test_sizes_of_a_pair_must_be_equal(tmp_path):
    write(tmp_path, "input/a.png")
    write(tmp_path, "gt/a.png", size=(8, 11))
    with pytest.raises(errors.DataIntegrityError, match="11 x 8"):
        PairedFolder(tmp_path)[0]


def test_a_corrupt_input_is_named(tmp_path):
    write(tmp_path, "input/a.png", "gt/a.png")
    (tmp_path / "input/a.png").write_bytes(b"no image")
    with pytest.raises(errors.DataIntegrityError, match=r"a\.png"):
        PairedFolder(tmp_path)[0]


def test_renaming_by_function_and_by_text(tmp_path):
    write(tmp_path, "input/1_rain.png", "gt/1_clean.png")
    for rename in (("_rain", "_clean"), lambda name: name.replace("rain", "clean")):
        assert len(PairedFolder(tmp_path, rename=rename)) == 1
    with pytest.raises(errors.ArgumentError, match="two texts"):
        PairedFolder(tmp_path, rename=("_rain",))


def test_own_folders_with_and_without_splits(tmp_path):
    write(tmp_path / "flat", *(f"{part}/{i}.png" for part in ("input", "gt") for i in range(10)))
    splits = read_paired_folder(tmp_path / "flat", test_share=0.3, seed=1)
    assert (len(splits.train), len(splits.test)) == (7, 3)
    assert not {*splits.train.names} & {*splits.test.names}
    names = [f"{s}/{part}/{s}.png" for s in ("train", "val", "test") for part in ("input", "gt")]
    write(tmp_path / "split", *names)
    assert read_paired_folder(tmp_path / "split").num_rows == {"train": 1, "val": 1, "test": 1}


def test_a_list_of_inputs(tmp_path):
    write(tmp_path, "a/input/1.png", "a/gt/1.png", "b/input/2_rain.png", "b/gt/2_clean.png")
    (tmp_path / "all.txt").write_text("a/input/1.png\n\nb/input/2_rain.png\n")
    assert [path.name for path in read_pair_list(tmp_path / "all.txt").targets] == [
        "1.png", "2_clean.png",
    ]  # fmt: skip
    (tmp_path / "all.txt").write_text("a/input/1.png\nb/input/3.png\n")
    with pytest.raises(errors.DataNotFoundError, match="line 2"):
        read_pair_list(tmp_path / "all.txt")


def test_scenes_are_held_out_whole():
    grey = [np.full((4, 4, 3), i, np.uint8) for i in range(5)]
    pairs = under_weather([Photo(str(i), image) for i, image in enumerate(grey)], ["haze", "snow"])
    stay, held = pairs.hold_out(0.4, seed=2)
    assert (len(stay), len(held)) == (6, 4)
    assert not {name[0] for name in stay.names} & {name[0] for name in held.names}
    with pytest.raises(errors.ArgumentError, match="share"):
        pairs.hold_out(1.0)


def test_joined_sets_keep_the_names_of_their_tasks():
    grey = np.zeros((4, 4, 3), np.uint8)
    parts = [PairedImages([grey], [grey], ["x"], [0], (task,)) for task in ("a", "b", "a")]
    joined = join_pairs(parts)
    assert joined.task_names == ("a", "b")
    assert joined.tasks.tolist() == [0, 1, 0]
    with pytest.raises(errors.ArgumentError, match="tasks"):
        PairedImages([grey], [grey], ["x"], [1], ("a",))


def test_bundled_photographs_are_split_by_region():
    splits = load("bundled-photos", weather=["haze", "night"], variants=1, short_side=100)
    assert splits.num_rows == {"train": 16, "val": 16, "test": 16}
    widths = [part[0][0].shape[1] for part in (splits.train, splits.val, splits.test)]
    assert widths == [55, 15, 30]
    again = load("bundled-photos", weather=["night"], variants=1, short_side=100)
    # the weather of an image does not depend on what else is made
    assert np.array_equal(again.train[0][0], splits.train[1][0])


def test_photographs_of_a_folder(tmp_path):
    write(tmp_path, *(f"train/{i}.png" for i in range(3)), "test/t.png")
    splits = read_photo_folder(tmp_path, weather=["snow"], short_side=None)
    assert splits.num_rows == {"train": 3, "test": 1}
    flat = read_photo_folder(tmp_path / "train", weather=["snow"], short_side=None)
    assert flat.num_rows == {"train": 2, "test": 1}
    with pytest.raises(errors.ArgumentError, match="one photo"):
        read_photo_folder(tmp_path / "test")
    with pytest.raises(errors.UnknownNameError, match="snow"):
        read_photo_folder(tmp_path, weather=["snwo"])


def test_bsds500_is_read_from_its_folders(tmp_path):
    make_fixture("bsds500", tmp_path, images=20, seed=0)
    splits = load("bsds500", root=tmp_path, weather=["night"], short_side=None)
    assert splits.num_rows == {"train": 20, "val": 10, "test": 20}


@pytest.mark.data
def test_bsds500_is_complete():
    splits = load("bsds500", weather=["night"], short_side=32)
    assert splits.num_rows == {"train": 200, "val": 100, "test": 200}
    scenes = [{name.split("-")[0] for name in part.names} for part in
              (splits.train, splits.val, splits.test)]  # fmt: skip
    assert len(set.union(*scenes)) == 500
