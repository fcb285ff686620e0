"""Photos of every mode, depth and orientation, and files that are none."""

import io
import os

import numpy as np
import pytest

from moeapps.errors import ArgumentError, ConfigError, DataIntegrityError, DataNotFoundError
from moeapps.vision.photo_files import list_photos, read_photo, write_photo

Image = pytest.importorskip("PIL.Image", reason='needs pip install "moeapps[vision]"')


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def test_png_keeps_every_pixel_and_skimage_reads_the_same(tmp_path, pixels):
    io_ = pytest.importorskip("skimage.io", reason="compares with scikit-image")
    write_photo(tmp_path / "a.png", pixels)
    assert np.array_equal(read_photo(tmp_path / "a.png"), pixels)
    assert np.array_equal(io_.imread(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_become_what_pillow_shows(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    got = read_photo(path)
    assert (got.shape, got.dtype) == ((9, 14, 3), np.uint8)
    assert np.array_equal(got, np.asarray(image.convert("RGB")))


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 100
    rgba[0, :, 3] = [0, 51, 255]  # a fifth of 100 and four fifths of white: 224; of 0: 204
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png")[0].tolist() == [
        [255, 255, 255], [224, 204, 204], [100, 0, 0],
    ]  # fmt: skip


def test_transparent_palette_entries_are_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_photo(tmp_path / "a.png")[0].tolist() == [[255] * 3, [50, 60, 70]]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_rounded(tmp_path, ending):
    deep = np.array([[0, 128, 129, 257 * 77, 65_535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{ending}")
    got = read_photo(tmp_path / f"a.{ending}")
    assert got[0].tolist() == [[v] * 3 for v in (0, 0, 1, 77, 255)]


def test_floats_have_a_scale_only_from_zero_to_one(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "a.tif")
    assert read_photo(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, 7.5]], np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(DataIntegrityError, match=r"b\.tif holds values from 0 to 7\.5"):
        read_photo(tmp_path / "b.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_the_camera_was_held(tmp_path, pixels, orientation):
    # Where row 0 and column 0 of the stored pixels lie, by the EXIF standard's own table.
    turn = {
        1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1], 5: lambda p: p.swapaxes(0, 1),
        6: lambda p: p.swapaxes(0, 1)[:, ::-1], 7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
        8: lambda p: p.swapaxes(0, 1)[::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "a.png"), turn(pixels))


def test_one_pixel_and_twelve_thousand(tmp_path):
    write_photo(tmp_path / "a.png", np.full((1, 1, 3), 5, np.uint8))
    assert read_photo(tmp_path / "a.png").tolist() == [[[5, 5, 5]]]
    write_photo(tmp_path / "b.png", np.zeros((12_000, 40), np.uint8))
    assert read_photo(tmp_path / "b.png").shape == (12_000, 40, 3)


def test_size_beyond_belief_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.vision.photo_files.MOST_PIXELS", 100)
    write_photo(tmp_path / "a.png", np.zeros((11, 10), np.uint8))
    with pytest.raises(DataIntegrityError, match=r"a\.png claims 10 x 11 pixels"):
        read_photo(tmp_path / "a.png")


def test_every_cut_of_a_file_is_an_error_that_names_it(tmp_path, pixels):
    big = np.repeat(np.repeat(pixels, 8, 0), 8, 1)
    for ending, kind in (("png", "PNG"), ("jpg", "JPEG"), ("tif", "TIFF")):
        buffer = io.BytesIO()
        Image.fromarray(big).save(buffer, kind)
        whole = buffer.getvalue()
        for share in (0.0, 0.02, 0.3, 0.7):
            path = tmp_path / f"cut.{ending}"
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(DataIntegrityError, match=rf"cut\.{ending} cannot be decoded"):
                read_photo(path)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no\.png is missing"):
        read_photo(tmp_path / "no.png")
    with pytest.raises(DataNotFoundError, match=r"cannot be read"):
        read_photo(tmp_path)


def test_listing_is_sorted_and_says_what_is_wrong(tmp_path):
    with pytest.raises(DataNotFoundError, match="holds no photos: none of its 0 entries"):
        list_photos(tmp_path)
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "c.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_photos(tmp_path)] == ["a.png", "b.JPG", "c.tiff"]
    with pytest.raises(DataNotFoundError, match="No such file"):
        list_photos(tmp_path / "none")
    with pytest.raises(DataNotFoundError, match="Not a directory"):
        list_photos(tmp_path / "notes.txt")


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataNotFoundError, match=rf"{tmp_path} cannot be read \(Permission denied"):
        list_photos(tmp_path)


def test_failed_writing_leaves_the_old_file_and_says_why(tmp_path, pixels):
    write_photo(tmp_path / "a.png", pixels)
    with pytest.raises(ArgumentError, match="must end in"):
        write_photo(tmp_path / "a.xyz", pixels)
    with pytest.raises(ArgumentError, match="float64"):
        write_photo(tmp_path / "a.png", pixels / 255)
    with pytest.raises(ConfigError, match="Cannot write"):
        write_photo(tmp_path / "a.png" / "b.png", pixels)  # a file is no folder
    assert np.array_equal(read_photo(tmp_path / "a.png"), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
