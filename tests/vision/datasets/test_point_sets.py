"""Published sets of counting: their files, splits and points."""

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from moeapps import errors
from moeapps.vision.datasets import DATASETS, card, list_datasets, load, make_fixture
from moeapps.vision.datasets.points import PointImages, PointSplits

NAMES = [name for name in list_datasets() if card(name).task.endswith("counting")]
WITH_FILES = [name for name in NAMES if card(name).files]
LISTS = ("trancos",)
MATLAB = ("shanghaitech-a", "shanghaitech-b", "ucf-cc-50", "ucf-qnrf", "nwpu-crowd")


def arguments(name):
    whole = {} if name in LISTS else {"whole": False}
    return whole | ({"train": 6} if name == "vgg-cells" else {})


def first_mat(root, name):
    key = "image_info" if name.startswith("shanghai") else "annPoints"
    return sorted(p for p in root.rglob("*.mat") if key in loadmat(p))[0], key


def test_all_sets_of_counting_are_there():
    assert set(NAMES) == {
        "shanghaitech-a", "shanghaitech-b", "ucf-cc-50", "ucf-qnrf", "jhu-crowd", "nwpu-crowd",
        "trancos", "vgg-cells", "rendered-crowds",
    }  # fmt: skip


@pytest.mark.parametrize("name", WITH_FILES)
def test_fixture_is_read(name, tmp_path):
    folder = make_fixture(name, tmp_path, images=24, seed=1)
    assert folder.is_relative_to(tmp_path)
    splits = load(name, root=tmp_path, **arguments(name))
    assert isinstance(splits, PointSplits)
    assert splits.split_source
    names = []
    for part in (splits.train, splits.val, splits.test):
        if part is None:
            continue
        assert part.counts.sum() > 0
        names += part.names if name in ("ucf-cc-50", "vgg-cells") else []
        for index in range(len(part)):
            image, points = part[index]
            height, width, channels = image.shape
            assert image.dtype == np.uint8
            assert channels == 3
            assert points.dtype == np.float64
            assert points.shape == (part.counts[index], 2)
            assert ((points >= 0) & (points < (width, height))).all()
    assert len(set(names)) == len(names)
    again = load(name, root=tmp_path, **arguments(name))
    assert np.array_equal(again.train.points[3], splits.train.points[3])


@pytest.mark.parametrize("name", WITH_FILES)
def test_points_are_where_the_fixture_painted_its_dots(name, tmp_path):
    make_fixture(name, tmp_path, images=24, seed=2)
    train = load(name, root=tmp_path, **arguments(name)).train
    for index in range(len(train)):
        image, points = train[index]
        for x, y in points.astype(int):
            assert image[y, x].min() > 150


@pytest.mark.parametrize("name", [n for n in WITH_FILES if n not in LISTS])
def test_a_part_of_a_set_is_refused_unless_asked_for(name, tmp_path):
    make_fixture(name, tmp_path, images=24)
    with pytest.raises(errors.DataIntegrityError, match="whole=False") as caught:
        load(name, root=tmp_path)
    assert "published set" in str(caught.value)
    assert card(name).url in str(caught.value)


@pytest.mark.parametrize("name", MATLAB)
def test_a_broken_or_foreign_matlab_file_is_named(name, tmp_path):
    make_fixture(name, tmp_path, images=24)
    path, key = first_mat(tmp_path, name)
    content = path.read_bytes()
    for broken in (b"", content[: len(content) // 2], b"no matlab at all" * 20):
        path.write_bytes(broken)
        with pytest.raises(errors.DataIntegrityError, match=path.name):
            load(name, root=tmp_path, **arguments(name))
    savemat(path, {"other": np.zeros((2, 2))})
    with pytest.raises(errors.DataIntegrityError, match=f"no '{key}'"):
        load(name, root=tmp_path, **arguments(name))
    path.unlink()
    with pytest.raises(errors.DataNotFoundError, match=path.name):
        load(name, root=tmp_path, **arguments(name))


@pytest.mark.parametrize("name", MATLAB)
def test_points_that_count_from_one_are_moved_when_told(name, tmp_path):
    make_fixture(name, tmp_path, images=24)
    first = load(name, root=tmp_path, one_based=False, **arguments(name)).train
    moved = load(name, root=tmp_path, one_based=True, **arguments(name)).train
    row = int(first.counts.argmax())
    np.testing.assert_allclose(first.points[row] - moved.points[row], 1.0, atol=1e-9)


@pytest.mark.parametrize("outside", ["clip", "drop", "error"])
def test_points_outside_are_clipped_dropped_or_refused(outside, tmp_path):
    make_fixture("ucf-qnrf", tmp_path, images=24)
    path, key = first_mat(tmp_path, "ucf-qnrf")
    savemat(path, {key: np.array([[5.0, 6.0], [-3.0, 7.0], [9.0, 900.0]])})
    options = {"root": tmp_path, "whole": False, "outside": outside}
    if outside == "error":
        with pytest.raises(errors.DataIntegrityError, match="2 of 3 points lie outside") as caught:
            load("ucf-qnrf", **options)
        assert "img_0001.jpg" in str(caught.value)
        return
    part = load("ucf-qnrf", **options)
    split = part.test if "Test" in str(path) else part.train
    image, points = split[0]
    assert len(points) == split.counts[0] == (3 if outside == "clip" else 1)
    assert ((points >= 0) & (points < image.shape[1::-1])).all()


def test_default_keeps_the_published_count_of_points_outside(tmp_path):
    make_fixture("ucf-cc-50", tmp_path, images=24)
    savemat(tmp_path / "UCF_CC_50" / "7_ann.mat", {"annPoints": np.array([[-1.0, -1.0]])})
    train = load("ucf-cc-50", root=tmp_path, whole=False).train
    assert train.counts[list(train.names).index("7")] == 1


def test_ucf_folds_test_each_image_once(tmp_path):
    make_fixture("ucf-cc-50", tmp_path, images=50)
    parts = [load("ucf-cc-50", root=tmp_path, fold=fold) for fold in range(5)]
    tested = [name for part in parts for name in part.test.names]
    assert sorted(map(int, tested)) == list(range(1, 51))
    for part in parts:
        assert len(part.train) == 40
        assert not set(part.train.names) & set(part.test.names)
    with pytest.raises(errors.ArgumentError, match="Choose 0 to 4"):
        load("ucf-cc-50", root=tmp_path, fold=5)


def test_jhu_reads_sizes_and_images_of_nobody(tmp_path):
    make_fixture("jhu-crowd", tmp_path, images=24)
    train = load("jhu-crowd", root=tmp_path, whole=False).train
    assert train.counts[1] == 0
    assert (tmp_path / "jhu_crowd_v2.0/train/gt/0002.txt").read_text() == ""
    assert [len(sizes) for sizes in train.sizes] == train.counts.tolist()
    words = (tmp_path / "jhu_crowd_v2.0/train/gt/0001.txt").read_text().split()
    assert train.sizes[0][0] == pytest.approx((float(words[2]) * float(words[3])) ** 0.5)
    path = tmp_path / "jhu_crowd_v2.0/train/gt/0003.txt"
    path.write_text("12 7 5\n")
    with pytest.raises(errors.DataIntegrityError, match=r"0003\.txt, line 1"):
        load("jhu-crowd", root=tmp_path, whole=False)
    path.unlink()
    with pytest.raises(errors.DataNotFoundError, match=r"0003\.txt"):
        load("jhu-crowd", root=tmp_path, whole=False)


def test_nwpu_tests_on_the_published_validation_images(tmp_path):
    make_fixture("nwpu-crowd", tmp_path, images=24)
    splits = load("nwpu-crowd", root=tmp_path, whole=False)
    assert splits.val is None
    listed = (tmp_path / "NWPU-Crowd/val.txt").read_text().split()[::3]
    assert list(splits.test.names) == listed
    assert splits.train.sizes[1] == pytest.approx(np.full(splits.train.counts[1], 4.0))
    (tmp_path / "NWPU-Crowd/images" / f"{listed[0]}.jpg").unlink()
    with pytest.raises(errors.DataNotFoundError, match=listed[0]):
        load("nwpu-crowd", root=tmp_path, whole=False)


def test_trancos_has_a_mask_of_each_image(tmp_path):
    make_fixture("trancos", tmp_path, images=24)
    train = load("trancos", root=tmp_path).train
    image, _ = train[0]
    mask = train.mask(0)
    assert mask.dtype == bool
    assert mask.shape == image.shape[:2]
    assert not mask[:, : image.shape[1] // 4].any()
    assert mask[:, image.shape[1] // 4 :].all()
    (tmp_path / "TRANCOS_v3/images/image-1-000001mask.mat").unlink()
    with pytest.raises(errors.DataNotFoundError, match="image-1-000001mask"):
        load("trancos", root=tmp_path)


def test_cells_split_differently_per_seed_and_never_overlap(tmp_path):
    make_fixture("vgg-cells", tmp_path, images=24)
    options = {"root": tmp_path, "whole": False, "train": 5}
    first, second = (load("vgg-cells", split=split, **options) for split in (0, 1))
    assert first.num_rows == {"train": 5, "val": 5, "test": 12}
    assert first.test.names != second.test.names
    for splits in (first, second):
        parts = (splits.train, splits.val, splits.test)
        assert len({name for part in parts for name in part.names}) == 22
    with pytest.raises(errors.ArgumentError, match="12 images beside the test"):
        load("vgg-cells", root=tmp_path, whole=False, train=13)
    (tmp_path / "counting/cells/003dots.png").unlink()
    with pytest.raises(errors.DataNotFoundError, match=r"003dots\.png"):
        load("vgg-cells", **options)


@pytest.mark.data
def test_real_cells_have_the_published_counts(real_set):
    splits = load("vgg-cells", root=real_set(card("vgg-cells")))
    assert splits.num_rows == {"train": 50, "val": 50, "test": 100}
    counts = np.concatenate([part.counts for part in (splits.train, splits.val, splits.test)])
    assert counts.sum() == card("vgg-cells").sizes["cells"]
    assert (counts.min(), counts.max()) == (74, 317)
    assert (round(counts.mean()), round(counts.std())) == (176, 61)  # as papers state them


def test_rendered_crowds_depend_on_seed_split_and_number_alone():
    few = load("rendered-crowds", train=2, val=1, test=1, size=48)
    more = load("rendered-crowds", train=3, val=0, test=2, size=48)
    assert more.val is None
    assert np.array_equal(few.train.images[1], more.train.images[1])
    assert np.array_equal(few.test.points[0], more.test.points[0])
    other = load("rendered-crowds", train=2, val=1, test=1, size=48, seed=1)
    assert not np.array_equal(few.train.images[0], other.train.images[0])
    assert not np.array_equal(few.train.images[0], few.test.images[0])
    with pytest.raises(errors.ArgumentError, match="leave a split empty"):
        load("rendered-crowds", train=0)


def test_sets_of_counting_have_no_classes():
    splits = load("rendered-crowds", train=2, val=0, test=1, size=32)
    with pytest.raises(errors.ArgumentError, match="CountingData"):
        _ = splits.num_classes


def test_columns_of_unequal_length_are_refused():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(errors.ArgumentError, match="2 names for 1 images"):
        PointImages([image], [np.zeros((0, 2))], ["a", "b"])
    with pytest.raises(errors.ArgumentError, match="1 points, 2 sizes"):
        PointImages([image], [np.ones((1, 2))], ["a"], sizes=[np.ones(2)])


def test_hold_out_leaves_images_on_both_sides():
    image = np.zeros((4, 4, 3), np.uint8)
    part = PointImages([image] * 3, [np.ones((i, 2)) for i in range(3)], list("abc"))
    stay, held = part.hold_out(0.01, seed=3)
    assert (len(stay), len(held)) == (2, 1)
    assert sorted([*stay.names, *held.names]) == list("abc")
    for share in (0.0, 1.0):
        with pytest.raises(errors.ArgumentError, match="one side empty"):
            part.hold_out(share)
    with pytest.raises(errors.ArgumentError, match="one side empty"):
        part.take([0]).hold_out(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_readers_name_an_argument_they_do_not_take(name, tmp_path):
    assert DATASETS[name].endswith(":read")
    with pytest.raises(errors.ArgumentError, match="does not take colour"):
        load(name, colour=1, **({"root": tmp_path} if card(name).files else {}))
