"""Batches of counting: joint crops, masks, exact mass, whole images, exact resume."""

import numpy as np
import pytest
import torch

from moeapps import errors
from moeapps.vision import CountingData, datasets
from moeapps.vision.datasets.points import PointImages, PointSplits

FEW = {"train": 6, "val": 2, "test": 3, "size": 48}


def made(**options):
    options = {"dataset_args": FEW, "batch_size": 2} | options
    data = CountingData(**options)
    data.setup("fit")
    return data


def own(sizes, mask=None, **options):
    """Images of given sizes with a bright pixel under each of seven points."""
    rng = np.random.default_rng(0)
    images, points = [], []
    for height, width in sizes:
        found = rng.random((7, 2)) * (width, height)
        image = np.zeros((height, width, 3), np.uint8)
        x, y = found.astype(int).T
        image[y, x] = 255
        images.append(image)
        points.append(found)
    masks = None if mask is None else [mask] * len(sizes)
    part = PointImages(images, points, [str(i) for i in range(len(sizes))], masks)
    data = CountingData.from_splits(PointSplits(part, part, part, "made"), **options)
    data.setup("fit")
    return data


def epoch(data):
    return list(data.train_dataloader())


@pytest.mark.parametrize("density", ["fixed", "knn", "size"])
def test_training_batches_hold_what_the_contract_says(density):
    batches = epoch(made(crop=32, density=density, sigma=2.0))
    assert len(batches) == 3
    for batch in batches:
        assert batch["image"].shape == (2, 3, 32, 32)
        assert batch["image"].dtype == batch["density"].dtype == batch["count"].dtype
        assert batch["image"].dtype == torch.float32
        assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
        assert batch["density"].shape == (2, 1, 32, 32)
        torch.testing.assert_close(
            batch["density"].double().sum((1, 2, 3)), batch["count"].double(), atol=1e-4, rtol=0
        )
        assert "mask" not in batch
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(6))


def test_density_stands_where_the_heads_are():
    data = own([(40, 40)], sigma=0.3, crop=24, batch_size=1, crops_per_image=20)
    for batch in epoch(data):
        bright = batch["image"][0, :1] > 0.5
        assert float(batch["density"][0][~bright].sum()) < 0.7 * max(float(batch["count"]), 1)
        assert int(bright.sum()) == int(batch["count"])


def test_each_image_gives_as_many_crops_as_asked():
    batches = epoch(made(crop=16, crops_per_image=3))
    found = torch.cat([batch["index"] for batch in batches])
    assert torch.bincount(found).tolist() == [3] * 6


def test_orders_and_crops_differ_between_epochs_and_repeat_with_the_seed():
    data, again, other = made(crop=16), made(crop=16), made(crop=16, seed=5)
    loader = data.train_dataloader()
    first, second = list(loader), list(loader)
    assert not torch.equal(first[0]["image"], second[0]["image"])
    assert torch.equal(first[0]["image"], epoch(again)[0]["image"])
    assert not torch.equal(first[0]["image"], epoch(other)[0]["image"])


def test_a_resumed_run_draws_what_the_run_would_have_drawn():
    data = made(crop=16)
    loader = data.train_dataloader()
    list(loader)
    state = data.state_dict()
    expected = list(loader)
    resumed = made(crop=16)
    resumed.load_state_dict(state)
    for one, two in zip(epoch(resumed), expected, strict=True):
        assert torch.equal(one["image"], two["image"])


def test_workers_give_the_same_batches():
    alone, helped = epoch(made(crop=16)), epoch(made(crop=16, num_workers=1))
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one["image"], two["image"])


def test_evaluation_takes_whole_images_of_any_size_one_by_one():
    data = own([(31, 40), (50, 23)])
    sizes = [tuple(batch["image"].shape) for batch in data.test_dataloader()]
    assert sizes == [(1, 3, 31, 40), (1, 3, 50, 23)]
    for batch in data.val_dataloader():
        assert batch["dots"].sum() == batch["count"] == 7
        assert (batch["dots"] > 0).sum() == (batch["image"][:, :1] > 0.5).sum()


def test_points_outside_the_mask_count_nowhere():
    mask = np.zeros((30, 40), bool)
    mask[:, 20:] = True
    data = own([(30, 40), (30, 40)], mask=mask, batch_size=2, crop=20, sigma=0.5)
    whole = next(iter(data.test_dataloader()))
    assert whole["mask"].shape == (1, 1, 30, 40)
    inside = ((whole["image"][0, 0] > 0.5) & torch.from_numpy(mask)).sum()
    assert whole["count"] == inside < 7
    assert (whole["dots"] * whole["mask"]).sum() == inside
    batch = epoch(data)[0]
    assert batch["mask"].shape == (2, 1, 20, 20)


def test_whole_images_in_batches_must_be_of_one_size():
    data = own([(31, 40), (50, 23)], batch_size=2)
    with pytest.raises(errors.ArgumentError, match="crop= of the data, or batch_size=1"):
        epoch(data)
    sizes = {tuple(b["image"].shape[2:]) for b in epoch(own([(31, 40), (50, 23)], batch_size=1))}
    assert sizes == {(31, 40), (50, 23)}


def test_sizes_are_capped_and_brought_to_a_multiple():
    data = own([(31, 40), (80, 23)], batch_size=1, max_side=40, multiple=8)
    assert {tuple(b["image"].shape[2:]) for b in epoch(data)} == {(24, 40), (40, 8)}
    assert [tuple(b["image"].shape[2:]) for b in data.test_dataloader()] == [(31, 40), (40, 12)]
    assert all(batch["count"] == 7 for batch in epoch(data))


def test_images_without_validation_hold_some_out():
    data = made(dataset_args=FEW | {"val": 0, "train": 10}, val_share=0.2)
    assert len(data.part("val")) == 2
    assert len(data.part("train")) == 8
    assert not set(data.part("val").names) & set(data.part("train").names)
    nothing = made(dataset_args=FEW | {"val": 0}, val_share=0.0)
    assert nothing.val_dataloader() == []


def test_an_image_of_nobody_is_a_map_of_zeros():
    blank = PointImages([np.zeros((20, 20, 3), np.uint8)] * 2, [np.zeros((0, 2))] * 2, ["a", "b"])
    splits = PointSplits(blank, blank, blank, "made")
    for density in ("fixed", "knn"):
        data = CountingData.from_splits(splits, batch_size=2, crop=16, density=density)
        batch = epoch(data)[0]
        assert batch["count"].tolist() == [0, 0]
        assert not batch["density"].any()


def test_own_folders_are_read(tmp_path):
    from moeapps.vision.photo_files import write_photo

    for name in "abcde":
        write_photo(tmp_path / "images" / f"{name}.png", np.zeros((20, 30, 3), np.uint8))
        (tmp_path / "points").mkdir(exist_ok=True)
        (tmp_path / "points" / f"{name}.csv").write_text("3,4\n12.5,9\n")
    data = CountingData("folder", root=tmp_path, batch_size=2, crop=16)
    data.setup("fit")
    assert {len(data.part(split)) for split in ("train", "val", "test")} == {3, 1}
    assert next(iter(data.test_dataloader()))["count"] == 2
    with pytest.raises(errors.ArgumentError, match="needs the folder"):
        CountingData("folder").setup("fit")


@pytest.mark.parametrize(
    "name", [n for n in datasets.list_datasets() if datasets.card(n).task.endswith("counting")]
)
def test_every_set_of_counting_gives_batches(name, tmp_path):
    args = {}
    if name == "rendered-crowds":
        args = FEW
    elif name != "trancos":
        args = {"whole": False} | ({"train": 6} if name == "vgg-cells" else {})
    root = tmp_path
    if datasets.card(name).files:
        datasets.make_fixture(name, tmp_path, images=20)
    data = CountingData(name, root=root, dataset_args=args, crop=16, batch_size=4)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert ("mask" in batch) == (name == "trancos")
    assert len(data.val_dataloader()) >= 1
    assert next(iter(data.test_dataloader()))["image"].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crop": 0}, "must be 1 or more"),
        ({"crop": [8, 8, 8]}, "must be 1 or more"),
        ({"batch_size": 0}, "must be 1 or more"),
        ({"max_side": 0}, "must be 1 or more"),
        ({"sigma": 0.0}, "sigma above 0"),
        ({"val_share": 1.0}, "a share from 0"),
        ({"density": "fixd"}, "Did you mean 'fixed'"),
    ],
)
def test_what_cannot_be_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        CountingData(**options)


def test_sets_of_classes_and_sets_without_sizes_are_refused(tmp_path):
    pytest.importorskip("sklearn", reason='needs pip install "moeapps[vision]"')
    with pytest.raises(errors.ArgumentError, match="no points to count"):
        CountingData("digits-lt").setup("fit")
    with pytest.raises(errors.ArgumentError, match="no sizes of heads"):
        own([(20, 20)], density="size")
    with pytest.raises(errors.UnknownNameError, match="Call setup first"):
        CountingData().part("train")
