import argparse
import subprocess
import sys

import numpy as np
import pytest

from moeapps.cli.data import register
from moeapps.errors import DataNotFoundError, OfflineError, UnknownNameError


@pytest.fixture
def data(capsys, monkeypatch):
    monkeypatch.delenv("MOEAPPS_DATA", raising=False)
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())

    def call(*words):
        args = parser.parse_args(["data", *map(str, words)])
        code = args.run(args)
        return code, capsys.readouterr().out

    return call


def test_list_shows_names_and_state(data, tmp_path):
    code, out = data("list", "c*", "--root", tmp_path)
    assert code == 0
    assert "citeseer" in out
    assert "can be downloaded" in out
    assert "minesweeper" not in out
    assert str(tmp_path) in out


def test_info_shows_the_card(data, tmp_path):
    code, out = data("info", "pokec", "--root", tmp_path)
    assert code == 0
    for part in ("1,632,803 nodes", "place by hand", "pokec/raw/pokec.mat", "not recorded"):
        assert part in out


def test_path_is_a_bare_path(data, tmp_path):
    assert data("path", "--root", tmp_path) == (0, f"{tmp_path}\n")
    assert data("path", "cora", "--root", tmp_path) == (0, f"{tmp_path}/Cora/raw\n")


def test_path_of_a_made_set_is_an_error(data):
    with pytest.raises(DataNotFoundError, match="made from a seed"):
        data("path", "mixed-csbm")


def test_check_reports_missing_files_and_fails(data, tmp_path):
    code, out = data("check", "minesweeper", "--root", tmp_path)
    assert code == 1
    assert "minesweeper.npz: missing" in out
    assert "https://github.com/yandex-research/heterophilous-graphs" in out


def test_check_reports_wrong_files_and_fails(data, tmp_path):
    (tmp_path / "minesweeper/raw").mkdir(parents=True)
    np.savez(tmp_path / "minesweeper/raw/minesweeper.npz", edges=np.zeros((1, 2)))
    code, out = data("check", "minesweeper", "--root", tmp_path)
    assert code == 1
    assert "wrong" in out


def test_check_reads_a_set_that_is_there(data):
    code, out = data("check", "karate")
    assert code == 0
    assert "34 nodes" in out


def test_unknown_name_gets_close_matches(data):
    with pytest.raises(UnknownNameError, match="'tolokers'"):
        data("info", "toloker")


def test_download_obeys_the_offline_switch(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MOEAPPS_OFFLINE", "1")
    with pytest.raises(OfflineError):
        data("download", "cora", "--root", tmp_path)


def test_download_of_a_set_without_addresses_says_what_to_do(data, tmp_path):
    with pytest.raises(DataNotFoundError, match="by hand"):
        data("download", "pokec", "--root", tmp_path)


def test_listing_needs_no_torch(tmp_path):
    code = (
        "import argparse, sys\n"
        "from moeapps.cli.data import register\n"
        "parser = argparse.ArgumentParser()\n"
        "register(parser.add_subparsers())\n"
        f"for words in (['list'], ['info', 'cora'], ['path', 'cora']):\n"
        f"    args = parser.parse_args(['data', *words, '--root', {str(tmp_path)!r}])\n"
        "    assert args.run(args) == 0\n"
        "assert not {'torch', 'torch_geometric', 'lightning'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_check_reads_images_and_names_what_stands_in_for_a_file(data, tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind, shape in (("images-idx3", (2000, 2, 2)), ("labels-idx1", (2000,))):
            array = (np.arange(np.prod(shape)) % 10).astype(np.uint8)
            header = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
    code, out = data("check", "mnist-lt", "--root", tmp_path)
    assert code == 0
    assert "train-images-idx3-ubyte stands in for it" in out
    assert "2,000 test" in out
    assert "here" in data("list", "mnist-lt", "--root", tmp_path)[1]
