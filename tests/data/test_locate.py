import hashlib

import pytest

from moeapps.data import DataArchive, DataFile, DatasetCard, locate
from moeapps.errors import DataIntegrityError, DataNotFoundError, OfflineError


def make_card(*files, **kwargs):
    return DatasetCard(
        "toy", "Toy", "graphs", "task", "accuracy", {}, 2, "", "", "Toy page", "https://toy.org",
        "", files=files, **kwargs,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.delenv("MOEAPPS_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_found_files_are_checked_and_named(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/a").write_bytes(b"1")
    card = make_card(
        DataFile("toy/a", hashlib.sha256(b"1").hexdigest(), 1), DataFile("toy/b", optional=True)
    )
    assert locate(card, root=tmp_path) == {"a": tmp_path / "toy/a"}


def test_missing_file_names_file_folder_and_page(tmp_path):
    card = make_card(DataFile("toy/a", urls=("https://toy.org/a",)))
    with pytest.raises(DataNotFoundError) as caught:
        locate(card, root=tmp_path)
    text = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    for part in ("toy/a", str(tmp_path), "Toy page", "https://toy.org", "download=True"):
        assert part in text


def test_missing_file_in_offline_mode_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEAPPS_OFFLINE", "1")
    card = make_card(DataFile("toy/a", urls=("https://toy.org/a",)))
    with pytest.raises(DataNotFoundError, match="Offline mode is on"):
        locate(card, root=tmp_path)
    with pytest.raises(OfflineError, match="offline mode is on"):
        locate(card, root=tmp_path, download=True)


def test_set_without_addresses_asks_for_placing_by_hand(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no direct download.*by hand"):
        locate(make_card(DataFile("toy/a")), root=tmp_path, download=True)


def test_wrong_checksum_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"2")
    card = make_card(DataFile("a", hashlib.sha256(b"1").hexdigest(), 1))
    with pytest.raises(DataIntegrityError, match="SHA-256"):
        locate(card, root=tmp_path)


def test_another_file_stands_in_where_the_published_one_is_absent(tmp_path):
    digest = hashlib.sha256(b"1").hexdigest()
    card = make_card(DataFile("a.gz", digest, 1, stand_ins=("a", "all.npz")))
    (tmp_path / "all.npz").write_bytes(b"22")
    assert locate(card, root=tmp_path) == {"a.gz": tmp_path / "all.npz"}
    (tmp_path / "a").write_bytes(b"333")
    assert locate(card, root=tmp_path) == {"a.gz": tmp_path / "a"}
    (tmp_path / "a.gz").write_bytes(b"4")
    with pytest.raises(DataIntegrityError, match="SHA-256"):
        locate(card, root=tmp_path)
    (tmp_path / "a.gz").write_bytes(b"1")
    assert locate(card, root=tmp_path) == {"a.gz": tmp_path / "a.gz"}


def test_archives_make_a_set_downloadable():
    packed = DataArchive(("https://toy.org/a.zip",), {"a": "toy/a"})
    assert make_card(DataFile("toy/a"), archives=(packed,)).downloadable
    assert not make_card(DataFile("toy/a"), DataFile("toy/b"), archives=(packed,)).downloadable
