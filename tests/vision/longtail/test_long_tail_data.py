"""Batches, views and splits of the data module; classes without images; own images and files."""

import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError, DataNotFoundError, UnknownNameError
from moeapps.vision import datasets
from moeapps.vision.datasets.images import ImageSet, Splits
from moeapps.vision.longtail.datamodules import LongTailData
from moeapps.vision.transforms import NORMALISATION


def digits(**arguments):
    data = LongTailData("digits-lt", batch_size=32, **arguments)
    data.setup()
    return data


def epoch_of(loader, number):
    loader.set_epoch(number)
    return list(loader)


def test_order_and_views_follow_seed_and_epoch():
    loader, again = digits(views=2).train_dataloader(), digits(views=2).train_dataloader()
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    torch.rand(5)
    for one, other in zip(second, epoch_of(again, 1), strict=True):
        for key in one:
            assert torch.equal(one[key], other[key])
    assert not torch.equal(first[0]["index"], second[0]["index"])
    other_seed = epoch_of(digits(views=2, seed=1).train_dataloader(), 0)
    assert not torch.equal(first[0]["index"], other_seed[0]["index"])


def test_every_training_image_comes_once_per_epoch_with_its_own_label():
    data = digits(drop_last=False)
    batches = list(data.train_dataloader())
    index = torch.cat([batch["index"] for batch in batches])
    assert torch.equal(index.sort().values, torch.arange(335))
    labels = torch.cat([batch["label"] for batch in batches])
    assert torch.equal(labels, torch.from_numpy(data.splits.train.labels)[index])


def test_test_images_are_not_augmented_but_normalised():
    data = LongTailData("mnist-lt", batch_size=32)
    rng = np.random.default_rng(0)
    part = ImageSet(
        rng.integers(0, 256, (40, 28, 28), dtype=np.uint8), np.arange(40) % 4, tuple("abcd")
    )
    data = LongTailData.from_splits(Splits(part, None, part, "own"), "mnist-own", batch_size=8)
    data.setup()
    (batch,) = data.test_dataloader()
    assert torch.equal(batch["image"], NORMALISATION["mnist"](part.tensor()))
    assert data.val_dataloader() == []
    assert (data.in_channels, data.image_size, data.class_counts) == (1, [28, 28], [10] * 4)


def test_second_view_comes_only_on_request():
    assert "strong" not in next(iter(digits().train_dataloader()))
    batch = next(iter(digits(views=2).train_dataloader()))
    assert batch["strong"].shape == batch["image"].shape
    assert not torch.equal(batch["strong"], batch["image"])


def own(counts, **arguments):
    labels = np.repeat(np.arange(len(counts)), counts)
    train = ImageSet(np.zeros((len(labels), 8, 8), np.uint8), labels, tuple("abcde"[: len(counts)]))
    test = ImageSet(
        np.zeros((len(counts), 8, 8), np.uint8), np.arange(len(counts)), train.class_names
    )
    return LongTailData.from_splits(Splits(train, None, test, "own"), batch_size=2, **arguments)


def test_class_without_a_training_image_is_named_or_left_out_everywhere():
    with pytest.raises(ArgumentError, match="class b has no training image"):
        own([4, 0, 3]).setup()
    data = own([4, 0, 3], empty_classes="drop")
    data.setup()
    assert data.class_counts == [4, 3]
    assert data.splits.class_names == ("a", "c")
    assert data.splits.test.labels.tolist() == [0, 1]


def test_held_out_share_comes_from_the_training_images():
    data = own([10, 10], val_share=0.2)
    data.setup()
    assert data.class_counts == [8, 8]
    assert sum(len(batch["label"]) for batch in data.val_dataloader()) == 4


def test_train_rows_are_the_images_as_they_are():
    data = digits()
    images, labels = data.train_rows(torch.tensor([3, 3, 0]))
    assert torch.equal(images, data.splits.train.tensor([3, 3, 0]))
    assert labels.tolist() == data.splits.train.labels[[3, 3, 0]].tolist()


def test_view_pairs_do_not_depend_on_labels_and_differ():
    batch = next(iter(digits().view_pairs()))
    assert not torch.equal(batch["image"], batch["strong"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"batch_size": 1}, ArgumentError, "BatchNorm"),
        ({"views": 3}, ArgumentError, "Choose 1, 2"),
        ({"empty_classes": "merge"}, UnknownNameError, "empty_classes"),
    ],
)
def test_unusable_options_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        LongTailData("digits-lt", **arguments)


def test_unknown_views_and_too_large_batches_are_refused():
    for name in ("weak", "normalisation"):
        with pytest.raises(UnknownNameError):
            digits(**{name: "nothing"}).train_dataloader()
    data = LongTailData("digits-lt", batch_size=400)
    data.setup()
    with pytest.raises(ArgumentError, match="no whole batch"):
        data.train_dataloader()


def test_files_are_decoded_image_by_image_with_the_same_views_for_the_same_epoch(tmp_path):
    pytest.importorskip("PIL", reason='needs pip install "moeapps[vision]"')
    datasets.make_fixture("imagenet-lt", tmp_path)
    data = LongTailData(
        "imagenet-lt", root=tmp_path, dataset_args={"whole": False}, batch_size=4, views=2,
        empty_classes="drop",
    )  # fmt: skip
    data.setup()
    assert data.image_size == [224, 224]

    def first(epoch):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return next(iter(loader))

    one, again, later = first(0), first(0), first(1)
    assert torch.equal(one["image"], again["image"])
    assert torch.equal(one["strong"], again["strong"])
    assert not torch.equal(one["index"], later["index"])
    assert one["image"].shape == (4, 3, 224, 224)


def test_foreign_images_get_size_channels_and_units_of_the_known_ones(tmp_path):
    pytest.importorskip("PIL", reason='needs pip install "moeapps[vision]"')
    datasets.make_fixture("imagenet-lt", tmp_path)
    colour = np.zeros((5, 16, 48, 3), np.uint8)
    colour[:, :, 8:40] = 255  # the middle 16 stay
    own = {
        "colour": ImageSet(colour, np.zeros(5, np.int64), ("x",)),
        "float": ImageSet(np.ones((3, 4, 4), np.float32), np.zeros(3, np.int64), ("x",)),
        "files": datasets.load("imagenet-lt", root=tmp_path, whole=False).test,
    }
    known = datasets.load("digits-lt")
    data = LongTailData.from_splits(
        known, "digits-own", foreign_images=own, foreign=["pair-digits-lt"]
    )
    data.setup()
    found = {
        name: torch.cat([batch["image"] for batch in loader])
        for name, loader in data.foreign_dataloaders().items()
    }
    assert set(found) == {*own, "pair-digits-lt"}
    assert {tuple(images.shape[1:]) for images in found.values()} == {(1, 8, 8)}
    assert {name: len(found[name]) for name in own} == {name: len(own[name]) for name in own}
    for name in ("colour", "float"):
        torch.testing.assert_close(found[name], torch.ones_like(found[name]))


def test_foreign_images_go_through_the_transform_of_known_files(tmp_path):
    pytest.importorskip("PIL", reason='needs pip install "moeapps[vision]"')
    datasets.make_fixture("imagenet-lt", tmp_path)
    data = LongTailData(
        "imagenet-lt", root=tmp_path, dataset_args={"whole": False}, empty_classes="drop",
        foreign="digits-lt", batch_size=4,
    )  # fmt: skip
    data.setup()
    batch = next(iter(data.foreign_dataloaders()["digits-lt"]))
    assert batch["image"].shape == (4, 3, 224, 224)


def test_a_missing_foreign_set_is_told_before_the_training(tmp_path):
    data = LongTailData("digits-lt", foreign=["cifar100-lt"], root=tmp_path)
    with pytest.raises(DataNotFoundError, match="cifar-100"):
        data.setup()
    with pytest.raises(UnknownNameError, match="pair-digits-lt"):
        digits(foreign=["pair-digits"])


@pytest.mark.parametrize("shape", [(6, 9, 9), (6, 8, 8, 3)])
def test_test_images_of_another_size_or_mode_are_refused(shape):
    names, labels = ("a", "b"), np.arange(6) % 2
    train = ImageSet(np.zeros((6, 8, 8), np.uint8), labels, names)
    test = ImageSet(np.zeros(shape, np.uint8), labels, names)
    data = LongTailData.from_splits(Splits(train, None, test, "own"), batch_size=2)
    with pytest.raises(ArgumentError, match=r"test images are \[.*those for training \[8, 8, 1\]"):
        data.setup()
