"""Batches of pairs: crops that agree, whole images, reproducible draws."""

import numpy as np
import pytest
import torch

from moeapps import errors
from moeapps.vision import RestorationData
from moeapps.vision.datasets.paired_images import PairedImages, PairedSplits
from moeapps.vision.photo_files import write_photo
from moeapps.vision.restoration.datamodules import random_crop

pytest.importorskip("lightning", reason='needs pip install "moeapps[training]"')


def pairs(count, size=(40, 52), tasks=("haze", "snow")):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]
    which = np.arange(count) % len(tasks)
    return PairedImages(images, images, [str(i) for i in range(count)], which, tasks)


def data(**args):
    parts = PairedSplits(pairs(10), pairs(4), pairs(6), "made")
    return RestorationData.from_splits(parts, **args)


def test_batches_follow_the_contract():
    made = data(crop=[16, 24], batch_size=4)
    batch = next(iter(made.train_dataloader()))
    assert batch["image"].shape == batch["target"].shape == (4, 3, 16, 24)
    assert batch["image"].dtype == torch.float32
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    assert batch["task"].dtype == batch["index"].dtype == torch.int64
    assert (batch["task"] == batch["index"] % 2).all()
    assert made.tasks == ("haze", "snow")
    whole = next(iter(made.test_dataloader()))
    assert whole["image"].shape == (1, 3, 40, 52)
    assert len(made.val_dataloader()) == 4


def test_input_and_target_are_cropped_and_turned_alike():
    for batch in data(crop=16, crops_per_image=8).train_dataloader():
        assert torch.equal(batch["image"], batch["target"])


def test_all_eight_turns_come_up_and_none_without():
    square = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    turned = {
        random_crop((square, square), (4, 4), np.random.default_rng(i))[0].tobytes()
        for i in range(100)
    }
    assert len(turned) == 8
    plain = random_crop((square, square), (4, 4), np.random.default_rng(0), dihedral=False)[0]
    assert np.array_equal(plain, square)


@pytest.mark.parametrize("window", [(5, 3), (3, 5), (9, 9)])
def test_crops_have_the_window_whatever_the_turn_and_size(window):
    image = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    for i in range(16):
        found, _ = random_crop((image, image), window, np.random.default_rng(i))
        assert found.shape == (*window, 3)


def test_draws_repeat_by_seed_and_go_on_after_resuming():
    def drawn(loader):
        return torch.cat([batch["image"] for batch in loader])

    one = data(crop=16, seed=1)
    loader = one.train_dataloader()
    first = drawn(loader)
    state = one.state_dict()
    second = drawn(loader)
    assert torch.equal(first, drawn(data(crop=16, seed=1).train_dataloader()))
    assert not torch.equal(first, second)
    resumed = data(crop=16, seed=1)
    resumed.load_state_dict(state)
    assert torch.equal(second, drawn(resumed.train_dataloader()))


def test_every_pair_is_taken_equally_often():
    made = data(crop=8, crops_per_image=3)
    indices = torch.cat([batch["index"] for batch in made.train_dataloader()])
    assert torch.bincount(indices).tolist() == [3] * 10


def test_resize_brings_all_images_to_one_size():
    made = data(resize=[20, 30], crop=8)
    assert next(iter(made.test_dataloader()))["image"].shape == (1, 3, 20, 30)


def test_validation_can_be_limited_and_held_out():
    assert len(data(val_limit=2).val_dataloader()) == 2
    parts = PairedSplits(pairs(10), None, pairs(6), "made")
    held = RestorationData.from_splits(parts, val_share=0.2)
    assert (len(held.part("train")), len(held.part("val"))) == (8, 2)
    assert RestorationData.from_splits(parts, val_share=0.0).val_dataloader() == []


def test_own_folders(tmp_path):
    rng = np.random.default_rng(0)
    for place in ("input", "gt"):
        (tmp_path / place).mkdir()
        for i in range(5):
            write_photo(tmp_path / place / f"{i}.png", rng.integers(0, 256, (20, 24, 3), np.uint8))
    made = RestorationData("paired-folder", root=tmp_path, crop=8, val_share=0.0)
    made.setup("fit")
    assert made.part("train").task_names == ("weather",)
    args = {"short_side": None}
    made = RestorationData(
        "photo-folder", root=tmp_path / "gt", weather=["night"], dataset_args=args, crop=8
    )
    made.setup("fit")
    assert made.tasks == ("night",)


def test_what_cannot_be_is_refused():
    with pytest.raises(errors.ArgumentError, match="crop=0"):
        RestorationData(crop=0)
    with pytest.raises(errors.ArgumentError, match="root="):
        RestorationData("paired-folder").setup("fit")
    with pytest.raises(errors.ArgumentError, match="no pairs"):
        RestorationData("digits-lt").setup("fit")
    with pytest.raises(errors.UnknownNameError, match="bsds500"):
        RestorationData("bsds50").setup("fit")
    with pytest.raises(errors.UnknownNameError, match="split"):
        data().part("training")
