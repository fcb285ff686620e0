"""Each format's own rules."""

import gzip
import pickle

import numpy as np
import pytest

from moeapps.errors import ArgumentError, DataIntegrityError, DataNotFoundError
from moeapps.vision.datasets import (
    card,
    cifar100_superclasses,
    load,
    make_fixture,
    read_file_list,
    read_image_folder,
    read_npz,
)
from moeapps.vision.datasets.mnist import read_idx

image = pytest.importorskip("PIL.Image", reason='needs pip install "moeapps[vision]"')
pytest.importorskip("scipy", reason='needs pip install "moeapps[vision]"')

# ----------------------------------------------------------------------------------------- CIFAR


def test_cifar_pixels_labels_and_order_are_those_of_torchvision(tmp_path):
    make_fixture("cifar10-lt", tmp_path, images=100, seed=2)
    splits = load("cifar10-lt", root=tmp_path, imbalance=None)
    folder = tmp_path / "cifar-10-batches-py"
    pixels, labels = [], []
    for number in range(1, 6):
        batch = pickle.loads((folder / f"data_batch_{number}").read_bytes())
        pixels.append(batch["data"].reshape(-1, 3, 32, 32))
        labels += batch["labels"]
    assert np.array_equal(splits.train.images.transpose(0, 3, 1, 2), np.concatenate(pixels))
    assert splits.train.labels.tolist() == labels
    assert splits.class_names[0] == "airplane"


def test_cifar_long_tail_is_the_recipe_on_the_official_order(tmp_path):
    make_fixture("cifar10-lt", tmp_path, images=200, seed=2)
    whole = load("cifar10-lt", root=tmp_path, imbalance=None).train
    tail = load("cifar10-lt", root=tmp_path, imbalance=10).train
    assert tail.class_counts.tolist() == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    draws = np.random.RandomState(0)
    expected = []
    for label, count in enumerate(tail.class_counts):
        members = np.where(whole.labels == label)[0]
        draws.shuffle(members)
        expected.append(whole.images[members[:count]])
    assert np.array_equal(tail.images, np.concatenate(expected))
    tlc = load("cifar10-lt", root=tmp_path, imbalance=None, kind="tlc").train
    assert tlc.class_counts.tolist() == [20, 14, 9, 6, 4, 3, 2, 2, 2, 1]


def test_cifar_batch_that_runs_code_is_refused(tmp_path):
    make_fixture("cifar10-lt", tmp_path)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.write_text, ("x",))

    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataIntegrityError, match="data_batch_3"):
        load("cifar10-lt", root=tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, "2 labels"),
        ({"data": np.zeros((12, 100), np.uint8)}, r"expected uint8 \(12, 3072\)"),
        ({"labels": [10] * 12}, "out of range"),
    ],
)
def test_cifar_batches_that_do_not_fit_are_refused(tmp_path, change, message):
    make_fixture("cifar10-lt", tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_1"
    batch = pickle.loads(path.read_bytes()) | change
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataIntegrityError, match=message):
        load("cifar10-lt", root=tmp_path)


def test_cifar_npz_stands_in_for_the_official_files(tmp_path):
    arrays = {}
    for split, count in (("train", 50), ("test", 20)):
        arrays[f"{split}_images"] = np.zeros((count, 32, 32, 3), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 10).astype(np.uint8)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    splits = load("cifar10-lt", root=tmp_path, imbalance=5)
    assert splits.num_rows == {"train": 22, "test": 20}
    assert "cifar10.npz" in splits.split_source
    arrays["train_images"] = arrays["train_images"][:, :28]
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(DataIntegrityError, match=r"expected \(32, 32, 3\)"):
        load("cifar10-lt", root=tmp_path)


def test_superclasses_of_cifar100_are_read_and_must_be_unique(tmp_path):
    make_fixture("cifar100-lt", tmp_path)
    groups, names = cifar100_superclasses(tmp_path)
    assert groups.tolist() == np.repeat(np.arange(20), 5).tolist()
    assert len(names) == 20
    path = tmp_path / "cifar-100-python/train"
    batch = pickle.loads(path.read_bytes())
    batch["coarse_labels"][0] = 7
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataIntegrityError, match="one superclass each"):
        cifar100_superclasses(tmp_path)


@pytest.mark.parametrize("missing", ["train", "meta"])
def test_superclasses_are_in_both_official_files_and_in_no_stand_in(tmp_path, missing):
    make_fixture("cifar100-lt", tmp_path)
    (tmp_path / "cifar100.npz").touch()
    (tmp_path / "cifar-100-python/test").unlink()
    assert len(cifar100_superclasses(tmp_path)[1]) == 20
    (tmp_path / "cifar-100-python" / missing).unlink()
    with pytest.raises(DataNotFoundError, match=f"superclasses and stands in for {missing!r}"):
        cifar100_superclasses(tmp_path)


@pytest.mark.data
def test_cifar_counts_on_real_images(real_set):
    real_data = real_set(card("cifar10-lt"))
    splits = load("cifar10-lt", root=real_data, imbalance=100, test="backward-50")
    assert splits.train.class_counts.tolist() == [
        5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50
    ]  # fmt: skip
    assert splits.test.class_counts[[0, -1]].tolist() == [20, 1000]
    means = splits.train.tensor().mean((0, 2, 3))
    assert means.tolist() == pytest.approx([0.49, 0.48, 0.45], abs=0.06)


# ----------------------------------------------------------------------------------------- MNIST


def test_idx_packed_or_not_is_read_and_wrong_lengths_refused(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = b"\0\0\x08\x03" + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    assert np.array_equal(read_idx(tmp_path / "plain"), array)
    assert np.array_equal(read_idx(tmp_path / "packed.gz"), array)
    for wrong in (content[:-1], content + b"x", b"\0\0\x0d" + content[3:], b"\0\0\x08\xff"):
        (tmp_path / "plain").write_bytes(wrong)
        with pytest.raises(DataIntegrityError, match="plain"):
            read_idx(tmp_path / "plain")


def test_mnist_labels_that_do_not_fit_are_refused(tmp_path):
    make_fixture("mnist-lt", tmp_path)
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[20] = 11
    path.write_bytes(content)
    with pytest.raises(DataIntegrityError, match=r"train-labels.*Label 11 of image 12"):
        load("mnist-lt", root=tmp_path)


def test_packed_mnist_of_another_checksum_is_refused(tmp_path):
    make_fixture("mnist-lt", tmp_path)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz").write_bytes(b"x")
    with pytest.raises(DataIntegrityError, match="not the published file"):
        load("mnist-lt", root=tmp_path)


@pytest.mark.data
def test_mnist_counts_on_real_images(real_set):
    real_data = real_set(card("mnist-lt"))
    splits = load("mnist-lt", root=real_data, imbalance=None)
    assert splits.num_rows == {"train": 60_000, "test": 10_000}
    assert splits.train.class_counts[:2].tolist() == [5923, 6742]
    assert load("mnist-lt", root=real_data).train.class_counts[-1] == 59


# ------------------------------------------------------------------------------------------- npz


def arrays(**changes):
    made = {}
    for split, count in (("train", 30), ("test", 12)):
        made[f"{split}_images"] = np.zeros((count, 6, 6), np.uint8)
        made[f"{split}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    return made | changes


def test_any_npz_is_read_and_made_long_tailed(tmp_path):
    np.savez(tmp_path / "own.npz", **arrays())
    splits = read_npz(tmp_path / "own.npz", imbalance=5)
    assert splits.train.class_counts.tolist() == [10, 4, 2]
    assert splits.val is None
    assert splits.class_names == ("0", "1", "2")
    assert read_npz(tmp_path / "own.npz").num_rows == {"train": 30, "test": 12}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": np.full(12, 3)}, "Label 3 of image 0 is out of range"),
        ({"train_labels": np.zeros(9, int)}, "30 train_images but 9 train_labels"),
        ({"train_labels": np.zeros((30, 2), int)}, "2 labels per image"),
        ({"test_images": np.zeros((12, 7, 7), np.uint8)}, "different shapes"),
        ({"val_images": np.zeros((3, 6, 6), np.uint8)}, "no array 'val_labels'"),
        ({"train_images": np.array([None] * 30)}, "own.npz"),
        ({"train_labels": np.full(30, 2**40)}, r"Label 1099511627776 of image 0 is beyond"),
        ({"train_labels": np.full(30, np.nan)}, "labels of type float64 number no classes"),
        ({"train_labels": np.array(["cat"] * 30)}, "number no classes"),
        (
            {"train_images": np.zeros((0, 6, 6), np.uint8), "train_labels": np.zeros(0, int)},
            "0 labels of type int64 number no classes",
        ),
        ({"train_images": np.zeros((30, 6, 6, 2), np.uint8)}, "1 or 3 channels"),
    ],
)
def test_npz_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    np.savez(tmp_path / "own.npz", **arrays(**change))
    with pytest.raises(DataIntegrityError, match=message):
        read_npz(tmp_path / "own.npz")


def test_npz_without_training_images_or_file_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"none\.npz is not there"):
        read_npz(tmp_path / "none.npz")
    np.savez(tmp_path / "own.npz", images=np.zeros(3))
    with pytest.raises(DataIntegrityError, match="no array 'train_images', only images"):
        read_npz(tmp_path / "own.npz")


# ------------------------------------------------------------------------------------ file lists


def test_list_must_have_the_published_number_of_lines(tmp_path):
    make_fixture("places-lt", tmp_path)
    with pytest.raises(DataIntegrityError, match="60 lines, the published list 62,500"):
        load("places-lt", root=tmp_path)


def test_missing_image_names_list_and_line(tmp_path):
    make_fixture("imagenet-lt", tmp_path)
    path = tmp_path / "imagenet-lt/ImageNet_LT_val.txt"
    name = path.read_text().splitlines()[7].rsplit(" ", 1)[0]
    (tmp_path / "imagenet-lt" / name).unlink()
    with pytest.raises(DataNotFoundError) as caught:
        load("imagenet-lt", root=tmp_path, whole=False)
    assert f"{path}, line 8" in str(caught.value)
    assert name in str(caught.value)


def test_images_may_lie_elsewhere(tmp_path):
    make_fixture("imagenet-lt", tmp_path / "made")
    folder = tmp_path / "photographs"
    (tmp_path / "made/imagenet-lt").rename(folder)
    (tmp_path / "lists/imagenet-lt").mkdir(parents=True)
    for path in folder.glob("*.txt"):
        path.rename(tmp_path / "lists/imagenet-lt" / path.name)
    splits = load("imagenet-lt", root=tmp_path / "lists", images=folder, whole=False)
    assert splits.train[0][0].shape == (3, 40, 48)
    with pytest.raises(DataNotFoundError, match="line 1"):
        load("imagenet-lt", root=tmp_path / "lists", whole=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png", "line 2: 'a.png' is not a path and a label"),
        ("a.png -1", "is not a path and a label from 0 up"),
        ("a.png 1.5", "is not a path and a label"),
        ("a.png 3", "line 2: label 3 is out of range for 3 classes"),
        ("../a.png 0", "points outside"),
        ("/etc/a.png 0", "points outside"),
        (r"C:\a.png 0", "points outside"),
        (r"\a.png 0", "points outside"),
        (r"b\..\a.png 0", "points outside"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, message):
    image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text(f"a.png 0\n{line}\n")
    with pytest.raises(DataIntegrityError, match=message):
        read_file_list(tmp_path / "list.txt", tmp_path, 3)


@pytest.mark.parametrize("label", ["9999999999", "9" * 5000])
def test_label_that_no_set_has_is_named_and_not_counted_up_to(tmp_path, label):
    image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text(f"a.png 0\na.png {label}\n")
    with pytest.raises(DataIntegrityError, match=r"list\.txt, line 2: "):
        read_file_list(tmp_path / "list.txt", tmp_path)


def test_paths_with_spaces_tabs_and_empty_lines_are_read(tmp_path):
    image.new("L", (4, 4)).save(tmp_path / "a b.png")
    (tmp_path / "list.txt").write_text("a b.png 2\n\na b.png\t0\r\n")
    data = read_file_list(tmp_path / "list.txt", tmp_path, mode="L")
    assert data.labels.tolist() == [2, 0]
    assert data.class_counts.tolist() == [1, 0, 1]
    assert data[1][0].shape == (1, 4, 4)


def test_list_written_on_windows_is_read(tmp_path):
    (tmp_path / "kätzchen").mkdir()
    image.new("L", (4, 4)).save(tmp_path / "kätzchen/a.png")
    lines = "kätzchen\\a.png 1\r\nkätzchen/a.png 0\r\n"
    (tmp_path / "list.txt").write_bytes(lines.encode("utf-8-sig"))
    data = read_file_list(tmp_path / "list.txt", tmp_path)
    assert data.labels.tolist() == [1, 0]
    assert data.images.names.tolist() == ["kätzchen/a.png"] * 2


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_list_in_another_encoding_is_named_with_its_line(tmp_path, encoding):
    image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_bytes("a.png 0\nkätzchen.png 1\n".encode(encoding))
    line = 2 if encoding == "latin-1" else 1
    with pytest.raises(DataIntegrityError, match=rf"list\.txt, line {line}: not UTF-8"):
        read_file_list(tmp_path / "list.txt", tmp_path)


def test_line_of_an_error_is_that_of_an_editor(tmp_path):
    image.new("L", (4, 4)).save(tmp_path / "a\u2028b.png")
    (tmp_path / "list.txt").write_text("a\u2028b.png 0\nwrong\n", encoding="utf-8")
    with pytest.raises(DataIntegrityError, match="line 2: 'wrong'"):
        read_file_list(tmp_path / "list.txt", tmp_path)


def test_shift_follows_the_training_counts_of_a_list(tmp_path):
    lines = {"train": [0, 1, 1, 1, 2, 2], "test": [0, 1, 2] * 4}
    for split, labels in lines.items():
        (tmp_path / "places-lt").mkdir(exist_ok=True)
        image.new("RGB", (4, 4)).save(tmp_path / "places-lt/a.png")
        text = "".join(f"a.png {label}\n" for label in labels)
        (tmp_path / f"places-lt/Places_LT_{split}.txt").write_text(text)
    (tmp_path / "places-lt/Places_LT_val.txt").write_text("a.png 0\n")
    splits = load("places-lt", root=tmp_path, whole=False, test="forward-4")
    assert splits.train.class_counts.tolist() == [1, 3, 2]
    assert splits.test.class_counts.tolist() == [1, 4, 2]


# --------------------------------------------------------------------------------- image folders


def write_images(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image.new("RGB", (5, 4), (index, 0, 0)).save(folder / name / f"{index}.png")


def test_folder_of_classes_is_held_out_and_made_long_tailed(tmp_path):
    write_images(tmp_path, {"cat": 10, "dog": 10})
    (tmp_path / "cat/notes.txt").write_text("not an image")
    splits = read_image_folder(tmp_path, imbalance=4)
    assert splits.class_names == ("cat", "dog")
    assert splits.train.class_counts.tolist() == [8, 2]
    assert splits.test.class_counts.tolist() == [2, 2]
    assert splits.train[0][0].shape == (3, 4, 5)


def test_folders_of_splits_are_read_and_foreign_classes_refused(tmp_path):
    write_images(tmp_path / "train", {"cat": 4, "dog": 3})
    with pytest.raises(DataNotFoundError, match="neither test nor val"):
        read_image_folder(tmp_path)
    write_images(tmp_path / "val", {"dog": 2})
    splits = read_image_folder(tmp_path)
    assert splits.test.class_counts.tolist() == [0, 2]
    assert splits.val is None
    write_images(tmp_path / "test", {"cat": 1})
    assert read_image_folder(tmp_path).num_rows == {"train": 7, "val": 2, "test": 1}
    write_images(tmp_path / "test/..", {"val/bird": 1})
    with pytest.raises(ArgumentError, match="a class 'bird'"):
        read_image_folder(tmp_path)


def test_folder_without_images_says_what_was_expected(tmp_path):
    with pytest.raises(DataNotFoundError, match="Expected <class>/<image>"):
        read_image_folder(tmp_path)


# ------------------------------------------------------------------------------------ attributes


@pytest.mark.parametrize("name", ["awa2", "cub", "sun", "flo"])
def test_attribute_set_counts_from_zero_and_keeps_seen_and_unseen_apart(name, tmp_path):
    make_fixture(name, tmp_path, images=80, seed=3)
    data = load(name, root=tmp_path)
    assert data.num_rows == {
        "train": 26, "val": 19, "trainval": 45, "test_seen": 11, "test_unseen": 24
    }  # fmt: skip
    assert data.labels.min() == 0
    assert data.seen.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert data.unseen.tolist() == [7, 8, 9]
    assert not set(data.classes("train")) & set(data.classes("val"))
    assert data.attributes.shape == (10, 12)
    assert data.class_names[9] == "class.9"
    features, labels = data.part("test_unseen")
    assert features.shape == (24, 16)
    assert features.dtype == np.float32
    assert set(labels) == {7, 8, 9}
    with pytest.raises(KeyError, match="test_seen"):
        data.part("test_sen")


def change_mat(path, **changes):
    from scipy.io import loadmat, savemat

    content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    savemat(path, {k: v for k, v in (content | changes).items() if v is not None})


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"labels": None}, "it has no labels"),
        (0, {"labels": np.ones((3, 1))}, "features of 60 images but 3 labels"),
        (0, {"labels": np.full((60, 1), 11.0)}, "label 11 is out of range for 10 classes"),
        (0, {"labels": np.zeros((60, 1))}, "a label is not a whole number from 1"),
        (0, {"features": np.full((16, 60), np.nan)}, "NaN"),
        (1, {"att": np.zeros((12, 9))}, "attributes of 9 classes but 10 class names"),
        (1, {"val_loc": np.array([[61.0]])}, "val_loc names row 61 of 60"),
        (1, {"train_loc": np.array([[0.0]])}, "a row of train_loc is not a whole number from 1"),
        (1, {"test_seen_loc": np.array([[1.0]])}, "both in trainval_loc and in a test"),
        (1, {"test_unseen_loc": np.array([[5.0]])}, "has training images"),
    ],
)
def test_attribute_files_that_do_not_fit_are_refused(tmp_path, number, change, message):
    make_fixture("cub", tmp_path)
    change_mat(tmp_path / card("cub").files[number].path, **change)
    with pytest.raises(DataIntegrityError, match=message):
        load("cub", root=tmp_path)
