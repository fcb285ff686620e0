"""Own photographs with points: every kind of file, and what is wrong with some."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from moeapps import errors
from moeapps.vision.datasets import PointFolder, read_point_folder
from moeapps.vision.datasets.points import fit_points

POINTS = np.array([[1.5, 2.0], [11.0, 7.25]])


@pytest.fixture
def folder(tmp_path):
    """Two photographs of 12 x 8 pixels."""
    for name in ("a", "b"):
        photo(tmp_path / "images" / f"{name}.png")
    (tmp_path / "points").mkdir()
    return tmp_path


def photo(path, size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 90).save(path, **options)


def both(folder, suffix, content, empty=""):
    for name, text in (("a", content), ("b", empty)):
        (folder / "points" / f"{name}{suffix}").write_text(text)


def read(folder, points="points", **options):
    return PointFolder(folder / "images", folder / points, **options)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", "1.5,2\n11,7.25\n"),
        (".csv", "x,y\n1.5,2\n11,7.25\n"),
        (".csv", "label;Y;X\nhead;2;1.5\nhead;7.25;11\n"),
        (".csv", "\ufeffx,y\r\n1.5,2\r\n11,7.25\r\n"),
        (".txt", "1.5 2\n11\t7.25\n"),
        (".txt", "1.5 2 30 40 1 0\n\n11 7.25 5 6 0 0\n"),
        (".txt", "1.5e0 2e0\n1.1e1 7.25\n"),
        (".json", "[[1.5, 2], [11, 7.25]]"),
        (".json", '{"points": [[1.5, 2], [11, 7.25]], "img_id": "a"}'),
        (".json", '[{"x": 1.5, "y": 2}, {"y": 7.25, "x": 11}]'),
    ],
)
def test_text_files_of_all_kinds_are_read(folder, suffix, text):
    both(folder, suffix, text)
    part = read(folder)
    np.testing.assert_array_equal(part.points[0], POINTS)
    assert part.counts.tolist() == [2, 0]
    assert part.names == ["a", "b"]
    assert part[0][0].shape == (8, 12, 3)


@pytest.mark.parametrize("text", ["", "\n \n", "x,y\n"])
def test_an_empty_csv_means_nobody(folder, text):
    both(folder, ".csv", text, text)
    assert read(folder).counts.tolist() == [0, 0]


@pytest.mark.parametrize("text", ["", "[]", '{"points": []}'])
def test_an_empty_json_means_nobody(folder, text):
    both(folder, ".json", text, text)
    assert read(folder).counts.tolist() == [0, 0]


@pytest.mark.parametrize("key", ["points", "annPoints", "image_info", "mine"])
def test_matlab_files_are_read_once_it_is_said_from_where_they_count(folder, key):
    value = POINTS + 1
    if key == "image_info":
        record = np.empty((1, 1), dtype=[("location", object), ("number", object)])
        record[0, 0] = (value, np.array([[2.0]]))
        value = np.empty((1, 1), dtype=object)
        value[0, 0] = record
    savemat(folder / "points" / "GT_a.mat", {key: value})
    savemat(folder / "points" / "GT_b.mat", {"mine": np.zeros((0, 2)), "points": np.zeros((0, 2))})
    options = {"annotation": "GT_{}", "key": "mine" if key == "mine" else None}
    with pytest.raises(errors.ArgumentError, match="MATLAB counts pixels from 1"):
        read(folder, **options)
    np.testing.assert_allclose(read(folder, one_based=True, **options).points[0], POINTS)


def test_points_that_count_from_one_and_were_not_moved_may_lie_outside(folder):
    for name in ("a", "b"):
        savemat(folder / "points" / f"{name}.mat", {"points": np.array([[12.5, 3.0]])})
    with pytest.raises(errors.DataIntegrityError, match="count from 1"):
        read(folder, one_based=False)
    assert read(folder, one_based=True).points[0].tolist() == [[11.5, 2.0]]


def test_one_table_for_all_images(folder):
    (folder / "all.csv").write_text(
        "image,x,y,kind\na.png,1.5,2,head\na.png,11,7.25,head\nb.png,,\n"
    )
    part = read(folder, "all.csv")
    np.testing.assert_array_equal(part.points[0], POINTS)
    assert part.counts.tolist() == [2, 0]


def test_one_json_for_all_images(folder):
    (folder / "all.json").write_text(json.dumps({"a": POINTS.tolist(), "b.png": []}))
    part = read(folder, "all.json")
    np.testing.assert_array_equal(part.points[0], POINTS)
    assert part.counts.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("all.csv", "file,u,v\na.png,1,2\n", "expected image, x, y"),
        ("all.csv", "image,x,y\na.png,1,two\nb.png,,\n", "line 2: x='1' and y='two'"),
        ("all.json", "[[1, 2]]", "a list per name"),
        ("all.json", "{", "cannot be read"),
        ("all.json", '{"a": [[1]], "b": []}', "two numbers per point"),
        ("all.json", '{"a": {"heads": []}, "b": []}', "no 'points'"),
    ],
)
def test_a_malformed_file_for_all_is_named(folder, name, text, match):
    (folder / name).write_text(text)
    with pytest.raises(errors.DataIntegrityError, match=match) as caught:
        read(folder, name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "text", "match"),
    [
        (".txt", "1 2\nthree 4\n", r"a\.txt, line 2"),
        (".txt", "1 2\n3\n", r"a\.txt, line 2"),
        (".txt", "nan 2\n", r"a\.png: point 1 is"),
        (".csv", "u,v\n1,2\n", r"a\.csv, line 1"),
        (".csv", "x,y\n1,2\n3\n", "line 3 has no numbers"),
        (".json", "[[1, 2], [3]]", r"a\.json"),
        (".json", "{'a'", r"a\.json"),
        (".mat", "no matlab", r"a\.mat"),
    ],
)
def test_a_malformed_file_is_named(folder, suffix, text, match):
    both(folder, suffix, text, text)
    with pytest.raises(errors.DataIntegrityError, match=match):
        read(folder, one_based=False)


def test_images_without_points_are_named(folder):
    for number in range(4):
        photo(folder / "images" / f"c{number}.png")
    (folder / "points" / "a.csv").write_text("1,2\n")
    with pytest.raises(errors.DataNotFoundError, match="Photos without points") as caught:
        read(folder)
    assert "b.png, c0.png, c1.png and 2 more" in str(caught.value)
    assert "empty file" in str(caught.value)


def test_points_without_an_image_are_named(folder):
    both(folder, ".csv", "1,2\n")
    (folder / "points" / "lost.csv").write_text("1,2\n")
    with pytest.raises(errors.DataNotFoundError, match=r"without a photo .*: lost\.csv"):
        read(folder)


@pytest.mark.parametrize("listed", ["a.png,1,2\n", "a.png,1,2\nb.png,,\nlost.png,1,1\n"])
def test_a_table_and_its_images_must_agree(folder, listed):
    (folder / "all.csv").write_text("image,x,y\n" + listed)
    with pytest.raises(errors.DataNotFoundError, match="lost.png" if "lost" in listed else "b.png"):
        read(folder, "all.csv")


def test_two_files_for_one_image_are_refused(folder):
    both(folder, ".csv", "1,2\n")
    (folder / "points" / "a.txt").write_text("1 2\n")
    with pytest.raises(errors.DataIntegrityError, match="both the points of one image"):
        read(folder)


def test_two_images_for_one_file_are_refused(folder):
    both(folder, ".csv", "1,2\n")
    photo(folder / "images" / "a.jpg")
    with pytest.raises(errors.DataIntegrityError, match="their ending only"):
        read(folder)


def test_points_outside_are_an_error_that_tells_what_may_be_wrong(folder):
    both(folder, ".csv", "5,3\n7,11\n")  # y beyond 8: perhaps x and y are exchanged
    with pytest.raises(errors.DataIntegrityError, match="1 of 2 points lie outside") as caught:
        read(folder)
    for text in ("a.png", "12 x 8", "x=7, y=11", "outside='drop' or 'clip'", "exchanged"):
        assert text in str(caught.value)
    assert read(folder, outside="drop").counts.tolist() == [1, 0]
    np.testing.assert_allclose(read(folder, outside="clip").points[0], [[5, 3], [7, 8]])
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'drop'"):
        read(folder, outside="drops")


def test_points_on_the_far_edges_are_inside():
    points, kept = fit_points(np.array([[12.0, 8.0], [0.0, 0.0]]), (12, 8))
    assert kept.all()
    assert (points < (12, 8)).all()
    np.testing.assert_allclose(points, [[12, 8], [0, 0]])


def test_a_photo_turned_by_its_camera_is_measured_as_it_is_read(folder):
    both(folder, ".csv", "2,11\n")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter: 12 x 8 becomes 8 x 12
    photo(folder / "images" / "a.jpg", exif=exif)
    (folder / "images" / "a.png").unlink()
    part = read(folder)
    assert part[0][0].shape == (12, 8, 3)
    assert part.points[0].tolist() == [[2.0, 11.0]]


def test_a_photo_that_is_none_is_named(folder):
    both(folder, ".csv", "1,2\n")
    (folder / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(errors.DataIntegrityError, match=r"a\.png cannot be decoded"):
        read(folder)


def test_missing_folders_are_named(folder, tmp_path):
    with pytest.raises(errors.DataNotFoundError, match="nowhere"):
        read(folder, "nowhere")
    with pytest.raises(errors.DataNotFoundError, match="nothing"):
        PointFolder(tmp_path / "nothing", folder / "points")
    with pytest.raises(errors.ArgumentError, match=r"no \{\} for the image's name"):
        read(folder, annotation="GT")


def test_splits_in_folders(folder):
    for split in ("train", "val", "test"):
        photo(folder / "set" / split / "images" / "a.png")
        (folder / "set" / split / "points").mkdir()
        (folder / "set" / split / "points" / "a.txt").write_text("3 4\n")
    assert read_point_folder(folder / "set").num_rows == {"train": 1, "val": 1, "test": 1}


def test_a_share_is_held_out_where_there_are_no_splits(folder):
    both(folder, ".csv", "1,2\n")
    splits = read_point_folder(folder, test_share=0.5, outside="error")
    assert splits.num_rows == {"train": 1, "test": 1}
    assert {*splits.train.names, *splits.test.names} == {"a", "b"}
