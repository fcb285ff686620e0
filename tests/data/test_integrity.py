import hashlib
import io
import stat
import tarfile
import zipfile

import pytest

from moeapps.data.integrity import (
    atomic_write,
    extract_archive,
    file_digest,
    reading,
    verify_file,
)
from moeapps.errors import DataIntegrityError, DataNotFoundError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"hello")
    return path


def test_digest_is_sha256(file):
    assert file_digest(file) == hashlib.sha256(b"hello").hexdigest()


def test_right_file_passes(file):
    verify_file(file, sha256=hashlib.sha256(b"hello").hexdigest(), size=5)
    verify_file(file)


def test_wrong_length_names_file_and_remedy(file):
    with pytest.raises(DataIntegrityError, match=r"a\.bin has 5 bytes, expected 6.*fetch it again"):
        verify_file(file, size=6)


def test_wrong_checksum_names_file(file):
    with pytest.raises(DataIntegrityError, match=r"a\.bin has SHA-256"):
        verify_file(file, sha256="0" * 64, size=5)


def test_atomic_write_makes_folders(tmp_path):
    target = tmp_path / "x" / "y.bin"
    with atomic_write(target) as stream:
        stream.write(b"1")
        assert not target.exists()
    assert target.read_bytes() == b"1"


def test_failed_write_leaves_the_old_file_and_no_litter(file):
    def fail():
        with atomic_write(file) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_bytes() == b"hello"
    assert [p.name for p in file.parent.iterdir()] == ["a.bin"]


def test_parser_errors_name_the_file():
    message = r"cora\.x cannot be read \(EOFError"
    with pytest.raises(DataIntegrityError, match=message), reading("cora.x"):
        raise EOFError("Ran out of input")


@pytest.mark.parametrize("error", [FileNotFoundError, MemoryError, DataNotFoundError])
def test_other_errors_keep_their_kind(error):
    with pytest.raises(error), reading("cora.x"):
        raise error("no")


def _zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zip_members_go_where_they_are_sent(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"x/a.txt": b"a", "x/b.txt": b"b"})
    written = extract_archive(archive, tmp_path / "out", members={"x/a.txt": "set/raw/a.txt"})
    assert written == [tmp_path / "out/set/raw/a.txt"]
    assert written[0].read_bytes() == b"a"
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 1


def test_tar_unpacks_whole(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("d/a.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    (written,) = extract_archive(path, tmp_path / "out")
    assert written.read_bytes() == b"abc"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:evil", "a\\..\\evil"])
def test_names_outside_the_folder_are_refused(tmp_path, name):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataIntegrityError, match="outside the folder"):
        extract_archive(path, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_zip_traversal_is_refused_before_anything_is_written(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"good": b"1", "../evil": b"2"})
    with pytest.raises(DataIntegrityError, match="outside the folder"):
        extract_archive(archive, tmp_path / "out", members={"good": "good"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tar_are_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataIntegrityError, match="link or a device"):
        extract_archive(path, tmp_path / "out")


def test_links_in_zip_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataIntegrityError, match="link or a device"):
        extract_archive(path, tmp_path / "out")


def test_bombs_are_stopped_while_unpacking(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"zeros": bytes(20 << 20)})
    with pytest.raises(DataIntegrityError, match="bomb"):
        extract_archive(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_missing_member_is_named(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"a": b"1"})
    with pytest.raises(DataIntegrityError, match="no member 'b'"):
        extract_archive(archive, tmp_path / "out", members={"b": "b"})


def test_truncated_archive_is_an_integrity_error(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"a": b"1" * 1000})
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(DataIntegrityError, match=r"a\.zip cannot be read"):
        extract_archive(archive, tmp_path / "out")
