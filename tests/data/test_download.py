import contextlib
import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.download import download_file, fetch, is_offline
from moeapps.errors import ArgumentError, DataIntegrityError, DataNotFoundError, OfflineError

CONTENT = bytes(range(256)) * 2000
SUM = hashlib.sha256(CONTENT).hexdigest()


class _Site:
    """A web server whose answers the test decides: path -> list of behaviours, the last stays."""

    def __init__(self):
        self.files, self.plans, self.log = {}, {}, []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.log.append((self.path, self.headers.get("Range")))
                plan = site.plans.get(self.path, ["ok"])
                step = plan.pop(0) if len(plan) > 1 else plan[0]
                body = site.files.get(self.path)
                if body is None or isinstance(step, int):
                    self.send_error(404 if body is None else step)
                    return
                start = 0
                if (wanted := self.headers.get("Range")) and step != "no range":
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206 if start else 200)
                self.send_header(
                    "Content-Type", "text/html" if step == "html" else "application/octet-stream"
                )
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                body = body[start:]
                with contextlib.suppress(OSError):
                    self.wfile.write(body[: len(body) // 2] if step == "cut" else body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def site(monkeypatch):
    monkeypatch.delenv("MOEAPPS_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    site = _Site()
    site.files["/a"] = CONTENT
    thread = threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def get(site, tmp_path):
    waits = []

    def call(*paths, **kwargs):
        urls = [site.url + path for path in paths]
        return download_file(urls, tmp_path / "out" / "a.bin", sleep=waits.append, **kwargs)

    call.waits, call.folder = waits, tmp_path / "out"
    return call


def test_file_arrives_whole_and_alone(get):
    assert get("/a", sha256=SUM, size=len(CONTENT)).read_bytes() == CONTENT
    assert [p.name for p in get.folder.iterdir()] == ["a.bin"]


def test_busy_server_is_asked_again_with_growing_pauses(site, get):
    site.plans["/a"] = [503, 503, "ok"]
    get("/a", sha256=SUM, pause=1.0)
    assert get.waits == [1.0, 2.0]


def test_cut_transfer_goes_on_where_it_stopped(site, get):
    site.plans["/a"] = ["cut", "ok"]
    assert get("/a", sha256=SUM).read_bytes() == CONTENT
    assert site.log[1][1] == f"bytes={len(CONTENT) // 2}-"


def test_server_without_ranges_starts_over(site, get):
    site.plans["/a"] = ["cut", "no range"]
    assert get("/a", sha256=SUM).read_bytes() == CONTENT


def test_partial_file_of_an_earlier_run_is_used(site, get):
    get.folder.mkdir()
    (get.folder / "a.bin.part").write_bytes(CONTENT[:1000])
    assert get("/a", sha256=SUM, size=len(CONTENT)).read_bytes() == CONTENT
    assert site.log[0][1] == "bytes=1000-"


def test_second_mirror_helps_when_the_first_has_nothing(site, get):
    assert get("/gone", "/a", sha256=SUM).read_bytes() == CONTENT
    assert [path for path, _ in site.log] == ["/gone", "/a"]


def test_second_mirror_helps_when_the_first_has_another_file(site, get):
    site.files["/other"] = b"x" * len(CONTENT)
    assert get("/other", "/a", sha256=SUM).read_bytes() == CONTENT


def test_wrong_checksum_leaves_no_file(site, get):
    with pytest.raises(DataIntegrityError, match="not the published file"):
        get("/a", sha256="0" * 64)
    assert not list(get.folder.iterdir())


def test_web_page_instead_of_a_file_is_refused(site, get):
    site.plans["/a"] = ["html"]
    with pytest.raises(DataNotFoundError, match="web page"):
        get("/a", retries=2)
    assert not (get.folder / "a.bin").exists()


def test_giving_up_says_why(site, get):
    with pytest.raises(DataNotFoundError, match=r"HTTP 404.*by hand"):
        get("/gone")
    assert get.waits == []


def test_only_web_addresses_are_accepted(tmp_path, monkeypatch):
    monkeypatch.delenv("MOEAPPS_OFFLINE", raising=False)
    with pytest.raises(ArgumentError, match="http"):
        download_file(["file:///etc/passwd"], tmp_path / "a")


@pytest.mark.parametrize(("value", "off"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_offline_switch(monkeypatch, value, off):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("MOEAPPS_OFFLINE", value)
    assert is_offline() is off


def test_offline_mode_touches_no_server(site, get, monkeypatch):
    monkeypatch.setenv("MOEAPPS_OFFLINE", "1")
    with pytest.raises(OfflineError, match="Unset MOEAPPS_OFFLINE"):
        get("/a")
    assert site.log == []


def _card(site, **kwargs):
    return DatasetCard(
        "toy", "Toy", "graphs", "task", "accuracy", {}, 2, "", "", "Toy page", "https://toy", "",
        **kwargs,
    )  # fmt: skip


def test_archive_is_unpacked_and_removed(site, tmp_path):
    packed = tmp_path / "toy.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("toy/a.csv", "1")
    site.files["/toy.zip"] = packed.read_bytes()
    card = _card(
        site,
        files=(DataFile("set/a.csv"),),
        archives=(DataArchive((f"{site.url}/toy.zip",), {"toy/a.csv": "set/a.csv"}),),
    )
    home = tmp_path / "home"
    fetch(card, home)
    assert (home / "set/a.csv").read_text() == "1"
    assert [p.name for p in home.rglob("*.zip")] == []
    fetch(card, home)
    assert len(site.log) == 1


def test_optional_files_may_be_missing_on_the_server(site, tmp_path):
    card = _card(
        site,
        files=(
            DataFile("set/a", urls=(f"{site.url}/a",)),
            DataFile("set/b", urls=(f"{site.url}/gone",), optional=True),
        ),
    )
    fetch(card, tmp_path)
    assert (tmp_path / "set/a").read_bytes() == CONTENT
    assert not (tmp_path / "set/b").exists()
