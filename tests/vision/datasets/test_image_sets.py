"""Images and labels that do not fit each other are refused; lazy files name list and line."""

import tracemalloc

import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError, DataIntegrityError, DataNotFoundError
from moeapps.vision.datasets import ImageFiles, ImageSet


def blank(count=6, **sides):
    return np.zeros((count, sides.get("height", 4), sides.get("width", 5), 3), np.uint8)


def test_counts_are_those_of_the_labels_and_empty_classes_count_zero():
    data = ImageSet(blank(), [2, 0, 2, 2, 0, 3], ("a", "b", "c", "d"))
    assert data.class_counts.tolist() == [2, 0, 3, 1]
    assert data.num_classes == 4
    assert data.labels.dtype == np.int64


def test_counts_that_disagree_with_the_labels_name_the_class():
    with pytest.raises(ArgumentError, match="2 images of class 'b', but the labels have 3"):
        ImageSet(blank(), [0, 0, 0, 1, 1, 1], ("a", "b"), np.array([3, 2]))
    with pytest.raises(ArgumentError, match=r"shape \(3,\) for 2 classes"):
        ImageSet(blank(), [0, 0, 0, 1, 1, 1], ("a", "b"), np.array([3, 3, 0]))
    ImageSet(blank(), [0, 0, 0, 1, 1, 1], ("a", "b"), np.array([3, 3]))


@pytest.mark.parametrize("wrong", [-1, 2])
def test_label_out_of_range_is_named_with_its_image(wrong):
    with pytest.raises(ArgumentError, match=f"Label {wrong} of image 4 is out of range"):
        ImageSet(blank(), [0, 1, 0, 1, wrong, 0], ("a", "b"))


def test_wrong_numbers_and_types_of_labels_are_refused():
    with pytest.raises(ArgumentError, match="for 6 images"):
        ImageSet(blank(), [0, 1], ("a", "b"))
    with pytest.raises(ArgumentError, match="whole numbers"):
        ImageSet(blank(), [0.0] * 6, ("a", "b"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((6, 4, 4, 4), np.uint8), "1 or 3 channels"),
        (np.zeros((6, 3, 8, 8), np.uint8), "1 or 3 channels"),
        (np.zeros((6, 4), np.uint8), "1 or 3 channels"),
        (np.zeros((6, 4, 4, 3), np.float64), "float64"),
        (np.zeros((6, 4, 4, 3), np.int64), "int64"),
        (torch.zeros(6, 4, 4, 3), "images are a Tensor. Pass a NumPy array"),
        ([np.zeros((4, 4, 3), np.uint8)] * 6, "images are a list"),
    ],
)
def test_wrong_mode_shape_or_type_of_images_is_refused(images, message):
    with pytest.raises(ArgumentError, match=message):
        ImageSet(images, [0] * 6, ("a",))


def test_tensor_is_from_0_to_1_channels_first():
    images = blank()
    images[3, 1, 2] = (255, 51, 0)
    data = ImageSet(images, [0] * 6, ("a",))
    whole = data.tensor()
    assert whole.shape == (6, 3, 4, 5)
    assert whole[3, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert torch.equal(data.tensor([3, 0]), whole[[3, 0]])
    assert data[3][0][:, 1, 2].tolist() == [255, 51, 0]
    floats = ImageSet(np.full((1, 2, 2), 0.5, np.float32), [0], ("a",))
    assert floats.tensor().unique().tolist() == [0.5]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_tensor_is_made_without_copies_in_between(kind, channels):
    data = ImageSet(np.ones((40, 64, 64, channels), kind), [0] * 40, ("a",))
    data.tensor([0])  # imports torch
    tracemalloc.start()
    found = data.tensor()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.numpy().nbytes <= peak < 1.1 * found.numpy().nbytes


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 3), (2, 1, 1, 3)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_item_changed_in_place_leaves_the_set_alone(shape, kind):
    data = ImageSet(np.zeros(shape, kind), [0, 0], ("a",))
    item = data[1][0]
    assert item.is_contiguous()
    item += 1
    assert not data.images.any()
    data.tensor().add_(1)
    assert not data.images.any()


def test_no_rows_are_an_empty_set(tmp_path):
    for images in (blank(), ImageFiles(tmp_path, np.array(["a.png"] * 6))):
        assert len(ImageSet(images, [0] * 6, ("a",)).take([])) == 0
    assert ImageSet(blank(), [0] * 6, ("a",)).tensor([]).shape == (0, 3, 4, 5)


def test_hold_out_is_stratified_seeded_and_leaves_every_class_an_image():
    labels = np.repeat([0, 1, 2, 3], [50, 10, 4, 1])
    pixels = np.arange(65, dtype=np.uint8).reshape(65, 1, 1)
    data = ImageSet(pixels, labels, tuple("abcd"))
    kept, held = data.hold_out(0.2, seed=1)
    assert kept.class_counts.tolist() == [40, 8, 4, 1]
    assert held.class_counts.tolist() == [10, 2, 0, 0]
    assert sorted([*kept.images.ravel(), *held.images.ravel()]) == list(range(65))
    assert np.array_equal(data.hold_out(0.2, seed=1)[1].images, held.images)
    assert not np.array_equal(data.hold_out(0.2, seed=2)[1].images, held.images)
    draws, expected = np.random.default_rng(1), []
    for label in range(4):
        rows = draws.permutation(np.flatnonzero(labels == label))
        expected += rows[: int(0.2 * len(rows))].tolist()
    assert held.images.ravel().tolist() == sorted(expected)
    assert data.hold_out(0.99)[0].class_counts.min() == 1
    for share in (0, 1, -0.5):
        with pytest.raises(ArgumentError, match="share="):
            data.hold_out(share)


def test_files_are_decoded_to_the_mode_asked_for(tmp_path):
    image = pytest.importorskip("PIL.Image", reason='needs pip install "moeapps[vision]"')
    colours = np.zeros((5, 7, 4), np.uint8)
    colours[..., 0], colours[..., 3] = 200, 255
    image.fromarray(colours, "RGBA").save(tmp_path / "a.png")
    image.fromarray(colours[..., 0], "L").save(tmp_path / "b.png")
    names = np.array(["a.png", "b.png"])
    files = ImageFiles(tmp_path, names)
    assert files[0].shape == files[1].shape == (5, 7, 3)
    assert files[0][0, 0].tolist() == [200, 0, 0]
    assert files[1][0, 0].tolist() == [200, 200, 200]
    assert ImageFiles(tmp_path, names, "L")[1].shape == (5, 7, 1)
    data = ImageSet(files, [1, 0], ("x", "y")).take([1])
    assert data[0][1] == 0
    assert not data.in_memory
    with pytest.raises(ArgumentError, match="any size"):
        data.tensor()
    with pytest.raises(ArgumentError, match="mode='CMYK' is unknown"):
        ImageFiles(tmp_path, names, "CMYK")


def test_file_that_went_missing_or_cannot_be_decoded_is_named(tmp_path):
    pytest.importorskip("PIL", reason='needs pip install "moeapps[vision]"')
    (tmp_path / "text.png").write_text("no image")
    files = ImageFiles(
        tmp_path, np.array(["text.png", "gone.png"]), "RGB", tmp_path / "list.txt", np.array([3, 9])
    )
    with pytest.raises(OSError, match=r"text\.png .*list\.txt, line 3.* cannot be decoded"):
        files[0]
    with pytest.raises(DataNotFoundError, match=r"gone\.png .*list\.txt, line 9.* is missing"):
        files[1]


@pytest.mark.parametrize(("ending", "kind"), [("png", np.uint16), ("tif", np.uint16), ("tif", int)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sixteen_bits_are_scaled_and_not_clipped_to_white(tmp_path, ending, kind, mode):
    image = pytest.importorskip("PIL.Image", reason='needs pip install "moeapps[vision]"')
    deep = np.array([[0, 257 * 77, 65_535]], np.int32 if kind is int else kind)
    image.fromarray(deep).save(tmp_path / f"a.{ending}")
    pixels = ImageFiles(tmp_path, np.array([f"a.{ending}"]), mode)[0]
    assert pixels.dtype == np.uint8
    assert pixels[0].tolist() == [[v] * (1 if mode == "L" else 3) for v in (0, 77, 255)]


def test_values_without_a_known_scale_are_an_error(tmp_path):
    image = pytest.importorskip("PIL.Image", reason='needs pip install "moeapps[vision]"')
    image.fromarray(np.array([[0.0, 700.0]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataIntegrityError, match=r"a\.tif holds values from 0 to 700"):
        ImageFiles(tmp_path, np.array(["a.tif"]))[0]


def test_photographs_are_not_turned_nor_laid_over_white(tmp_path):
    image = pytest.importorskip("PIL.Image", reason='needs pip install "moeapps[vision]"')
    exif = image.Exif()
    exif[0x0112] = 6
    image.fromarray(np.zeros((2, 5, 4), np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert not ImageFiles(tmp_path, np.array(["a.png"]))[0].any()
    assert ImageFiles(tmp_path, np.array(["a.png"]))[0].shape == (2, 5, 3)


def test_files_that_are_too_large_or_may_not_be_read_are_not_called_truncated(
    tmp_path, monkeypatch
):
    image = pytest.importorskip("PIL.Image", reason='needs pip install "moeapps[vision]"')
    image.new("L", (40, 30)).save(tmp_path / "a.png")
    files = ImageFiles(tmp_path, np.array(["a.png"]), "L", tmp_path / "list.txt", np.array([3]))
    for limit in (500, 1000):  # an error and a warning of Pillow's
        monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", limit)
        if limit == 1000:
            assert files[0].shape == (30, 40, 1)
            continue
        with pytest.raises(DataIntegrityError, match=r"list\.txt, line 3\) claims more pixels"):
            files[0]

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image, "open", refuse)
    with pytest.raises(DataNotFoundError, match=r"line 3\) cannot be read \(Permission denied\)"):
        files[0]
