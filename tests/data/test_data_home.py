import subprocess
import sys
from pathlib import Path

from moeapps.data import data_home


def test_argument_wins_over_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEAPPS_DATA", "/elsewhere")
    assert data_home(tmp_path) == tmp_path


def test_environment_wins_over_cache(monkeypatch):
    monkeypatch.setenv("MOEAPPS_DATA", "/elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_home() == Path("/elsewhere")


def test_cache_follows_xdg(monkeypatch):
    monkeypatch.delenv("MOEAPPS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_home() == Path("/cache/moeapps")


def test_relative_xdg_is_ignored(monkeypatch):
    monkeypatch.delenv("MOEAPPS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert data_home() == Path.home() / ".cache" / "moeapps"


def test_cards_and_names_need_no_torch():
    code = (
        "import sys, moeapps.data, moeapps.data.download, moeapps.data.unpickle\n"
        "from moeapps.graphs.datasets import card, list_datasets\n"
        "assert all(card(name).name == name for name in list_datasets())\n"
        "assert not {'torch', 'torch_geometric', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
