"""The counts that everybody uses, and the images that the recipe picks."""

import numpy as np
import pytest

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.datasets import (
    ImageSet,
    LongTailSubset,
    exponential_counts,
    long_tail,
    shifted_test,
    step_counts,
    tlc_counts,
)

# classes, largest, imbalance -> sum, last, (many, medium, few)
TABLE = [
    (100, 500, 10, 19_573, 50, (69, 31, 0)),
    (100, 500, 50, 12_608, 10, (41, 41, 18)),
    (100, 500, 100, 10_847, 5, (35, 35, 30)),
    (100, 500, 200, 9_502, 2, (30, 31, 39)),
    (10, 5000, 10, 20_431, 500, (10, 0, 0)),
    (10, 5000, 50, 13_996, 100, (9, 1, 0)),
    (10, 5000, 100, 12_406, 50, (8, 2, 0)),
    (10, 5000, 200, 11_203, 25, (7, 3, 0)),
]


@pytest.mark.parametrize(("classes", "largest", "imbalance", "total", "last", "groups"), TABLE)
def test_exponential_counts_are_the_published_ones(
    classes, largest, imbalance, total, last, groups
):
    counts = exponential_counts(largest, imbalance, classes)
    assert counts.sum() == total
    assert (counts[0], counts[-1]) == (largest, last)
    found = ((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum())
    assert found == groups


def test_tlc_counts_are_the_released_ones():
    hundred, ten = tlc_counts(500, 100), tlc_counts(5000, 10)
    assert (hundred.sum(), hundred[0], hundred[-1]) == (11_222, 500, 7)
    assert (ten.sum(), ten[0], ten[-1]) == (13_540, 5000, 84)


def test_step_counts_are_two_halves():
    assert step_counts(5000, 100, 10).tolist() == [5000] * 5 + [50] * 5
    assert step_counts(10, 5, 3).tolist() == [10, 2, 2]


def test_forward_50_of_imagenet_has_the_published_size():
    counts = exponential_counts(50, 50, 1000)
    assert (counts.sum(), counts[0], counts[-1]) == (12_058, 50, 1)


def even(per_class=20, classes=4):
    labels = np.arange(per_class * classes) % classes
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return ImageSet(pixels, labels, tuple("abcdefghij"[:classes]))


def test_recipe_is_one_legacy_generator_over_the_classes_in_order():
    data = even()
    part = long_tail(data, imbalance=4, seed=0)
    assert part.class_counts.tolist() == [20, 12, 7, 5]
    assert part.labels.tolist() == np.repeat(np.arange(4), [20, 12, 7, 5]).tolist()
    state = np.random.get_state()
    try:
        np.random.seed(0)
        expected = []
        for label, count in enumerate([20, 12, 7, 5]):
            members = np.where(data.labels == label)[0]
            np.random.shuffle(members)
            expected += members[:count].tolist()
    finally:
        np.random.set_state(state)
    assert part.images[:, 0, 0, 0].tolist() == expected


def test_choice_follows_the_seed_and_leaves_the_global_generator_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    one, again, other = (long_tail(even(), 4, seed=seed) for seed in (1, 1, 2))
    assert np.random.get_state()[1].tolist() == before
    assert np.array_equal(one.images, again.images)
    assert not np.array_equal(one.images, other.images)


def test_reverse_and_order_say_which_class_is_the_head():
    assert long_tail(even(), 4, reverse=True).class_counts.tolist() == [5, 7, 12, 20]
    assert long_tail(even(), 4, order=[2, 0, 1, 3]).class_counts.tolist() == [12, 7, 20, 5]
    for wrong in ([0, 1, 1, 3], "abcd", [[0, 1], [2, 3]], [0.0, 1.0, 2.0, 3.0]):
        with pytest.raises(ArgumentError, match="Name each of the 4 classes once"):
            long_tail(even(), 4, order=wrong)


def test_unbalanced_sets_give_the_fullest_profile_that_fits():
    labels = np.repeat(np.arange(3), [30, 9, 40])
    data = ImageSet(np.zeros((79, 2, 2), np.uint8), labels, ("a", "b", "c"))
    part = long_tail(data, 9)
    assert part.class_counts.tolist() == exponential_counts(29, 9, 3).tolist() == [29, 9, 3]
    with pytest.raises(ArgumentError, match=r"Class 1 has 9 images, fewer than the 10"):
        long_tail(data, 9, largest=30)


def test_class_that_would_be_left_empty_is_named():
    with pytest.raises(ArgumentError, match="Class 2 is left without an image"):
        long_tail(even(), imbalance=100)
    gap = ImageSet(np.zeros((4, 2, 2), np.uint8), np.array([0, 0, 2, 2]), ("a", "b", "c"))
    with pytest.raises(ArgumentError, match="is left without an image"):
        long_tail(gap, imbalance=1)


def test_kinds_and_imbalances_that_make_no_sense_are_refused():
    with pytest.raises(UnknownNameError, match="exponential"):
        long_tail(even(), kind="exponentiel")
    with pytest.raises(ArgumentError, match="below 1"):
        long_tail(even(), imbalance=0.01)
    for wrong in (float("nan"), float("inf"), 1e300):
        with pytest.raises(ArgumentError, match="below 1 or above 1,000,000,000"):
            exponential_counts(10, wrong, 3)
        with pytest.raises(ArgumentError, match="below 1 or above"):
            long_tail(even(), wrong)
    for wrong in (float("nan"), float("inf"), 10**30, -1):
        for call in (exponential_counts, step_counts):
            with pytest.raises(ArgumentError, match="is no number of images"):
                call(wrong, 4, 3)
        with pytest.raises(ArgumentError, match="is no number of images"):
            tlc_counts(wrong, 3)
    for kind, imbalance in (("exponential", 4), ("step", 4), ("tlc", None)):
        for largest in (0, -5):
            with pytest.raises(ArgumentError, match=f"largest={largest} leaves the head without"):
                long_tail(even(), imbalance, kind=kind, largest=largest)
    with pytest.raises(ArgumentError, match="The set is empty"):
        long_tail(even().take(np.arange(0)), 4)
    with pytest.raises(ArgumentError, match="fixes the imbalance"):
        long_tail(even(), imbalance=100, kind="tlc")
    with pytest.raises(ArgumentError, match="says nothing"):
        long_tail(even(), imbalance=None)
    assert long_tail(even(), None, kind="tlc").class_counts[0] == 20


@pytest.mark.parametrize("name", ["targets", "labels", "_labels", "y", "samples"])
def test_any_map_style_dataset_is_wrapped_without_opening_items(name):
    class Foreign:
        opened = 0

        def __len__(self):
            return 40

        def __getitem__(self, index):
            self.opened += 1
            return f"item {index}", index % 4

    foreign = Foreign()
    labels = [i % 4 for i in range(40)]
    setattr(foreign, name, [("path", i) for i in labels] if name == "samples" else labels)
    part = long_tail(foreign, imbalance=5)
    assert isinstance(part, LongTailSubset)
    assert foreign.opened == 0
    assert part.class_counts.tolist() == [10, 5, 3, 2]
    assert [part[i][1] for i in range(len(part))] == part.labels.tolist()


def test_torchvision_set_is_wrapped():
    datasets = torchvision_datasets()

    class Labelled(datasets.FakeData):
        targets = tuple(i % 3 for i in range(30))

    part = long_tail(Labelled(size=30, image_size=(3, 4, 4), num_classes=3), imbalance=4)
    assert part.class_counts.tolist() == [10, 5, 2]
    assert part[0][0].size == (4, 4)


def torchvision_datasets():
    return pytest.importorskip("torchvision.datasets", reason='needs pip install "moeapps[vision]"')


def items(dataset):
    return [dataset[i][1] for i in range(len(dataset))]


def test_set_that_keeps_no_labels_is_asked_item_by_item():
    datasets = torchvision_datasets()
    fake = datasets.FakeData(size=60, image_size=(3, 4, 4), num_classes=3)
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    part = long_tail(fake, imbalance=4)
    assert np.random.get_state()[1].tolist() == before
    assert items(part) == part.labels.tolist()
    assert part.class_counts.tolist() == exponential_counts(part.class_counts[0], 4, 3).tolist()
    turned = datasets.FakeData(60, (3, 4, 4), 3, target_transform=lambda label: 2 - label)
    assert items(long_tail(turned, 4)) == long_tail(turned, 4).labels.tolist()


def test_subset_has_the_labels_of_its_rows():
    from torch.utils.data import Subset

    datasets = torchvision_datasets()
    fake = datasets.FakeData(size=60, image_size=(3, 4, 4), num_classes=3)
    fake.targets = items(fake)
    for base in (fake, datasets.FakeData(60, (3, 4, 4), 3)):
        part = long_tail(Subset(base, range(59, 19, -1)), imbalance=2)
        assert items(part) == part.labels.tolist()


def test_labels_are_those_after_the_target_transform_of_the_set():
    class Foreign:
        targets = tuple("abcd"[i % 4] for i in range(40))
        classes = tuple("abcd")

        def target_transform(self, label):
            return "abcd".index(label) // 2

        def __len__(self):
            return 40

    assert long_tail(Foreign(), imbalance=4).class_counts.tolist() == [20, 5]


def test_labels_may_be_given():
    datasets = torchvision_datasets()
    fake = datasets.FakeData(size=40, image_size=(3, 4, 4), num_classes=3)
    part = long_tail(fake, 4, labels=[i % 2 for i in range(40)])
    assert part.class_counts.tolist() == [20, 5]
    assert (part.rows % 2 == part.labels).all()
    by_halves = long_tail(even(), 4, labels=even().labels // 2)
    assert by_halves.class_counts.tolist() == [40, 10]
    for wrong in ([0, 1], [0.5] * 40, [-1] * 40):
        with pytest.raises(ArgumentError, match="one whole number from 0 per item"):
            long_tail(fake, 4, labels=wrong)
    with pytest.raises(ArgumentError, match="is beyond 1,000,000 classes"):
        long_tail(fake, 4, labels=[10**12] * 40)


def test_labels_in_other_places_of_torchvision_are_found_without_opening_images(tmp_path):
    datasets = torchvision_datasets()
    for label, count in enumerate((8, 4)):
        signs = tmp_path / f"gtsrb/GTSRB/Training/{label:05d}"
        species = tmp_path / f"2018/Plantae/{label}"
        for folder, ending in ((signs, "ppm"), (species, "jpg")):
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.{ending}").write_text("no image")
    for foreign in (datasets.GTSRB(tmp_path), datasets.INaturalist(tmp_path, "2018")):
        assert long_tail(foreign, imbalance=2).class_counts.tolist() == [8, 4]


def test_labels_of_another_kind_are_asked_for():
    class Pets:
        _labels = tuple(range(8))
        _target_types = ("binary-category",)

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return "image", index % 2

    assert long_tail(Pets(), imbalance=2).class_counts.tolist() == [4, 2]


def test_dataset_without_labels_is_refused():
    with pytest.raises(ArgumentError, match="list has no targets"):
        long_tail([1, 2, 3])

    class Odd:
        targets = (0.5, 1.5)

    with pytest.raises(ArgumentError, match="one whole number from 0 per item"):
        long_tail(Odd())


def test_shifts_of_the_test_set():
    test = even()
    assert shifted_test(test, "uniform") is test
    assert shifted_test(test, "forward-4").class_counts.tolist() == [20, 12, 7, 5]
    assert shifted_test(test, "backward-4").class_counts.tolist() == [5, 7, 12, 20]
    ordered = shifted_test(test, "backward-4", order=[3, 2, 1, 0])
    assert ordered.class_counts.tolist() == [20, 12, 7, 5]
    for wrong in ("forward", "sideways-5", "forward-0", "backward--2", "forward-²", 5, None):
        with pytest.raises(ArgumentError, match="is no shift"):
            shifted_test(test, wrong)
    with pytest.raises(ArgumentError, match="above 1,000,000,000"):
        shifted_test(test, "forward-" + "9" * 400)
