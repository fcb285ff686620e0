"""The table of a domain's data sets: names, cards, readers and their arguments."""

import sys
from dataclasses import replace

import pytest

from moeapps.data import DatasetCard
from moeapps.data.card import DataFile
from moeapps.data.catalogue import Catalogue
from moeapps.errors import ArgumentError, MissingExtraError, UnknownNameError

DOTS = """
from moeapps.data import DatasetCard

CARDS = {
    name: DatasetCard(name, name, "toys", "counting", "accuracy", {"rows": 3}, 2,
        "one fixed", "CC0", "page", "https://example.org", "Dot 1999", synthetic=True)
    for name in ("big-dots", "dots_2")
}


def read(card, *, root=None, size=1):
    return card.name, root, size


def read_any(card, *, root=None, **more):
    return card.name, root, more


def make_fixture(card, root, size, seed):
    (root / card.files[0].path).write_text(f"{size} {seed}")


def read_missing(card, *, root=None):
    import no_such_package
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    folder = tmp_path / "shop" / "toys"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text("")
    (folder / "dots.py").write_text(DOTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Catalogue("shop.toys", {"big-dots": "dots:read", "dots_2": "dots:read_any"})
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_names_match_patterns_in_order(table):
    assert table.names() == ["big-dots", "dots_2"]
    assert table.names("d*") == ["dots_2"]


@pytest.mark.parametrize("name", ["big-dots", "BIG_DOTS", "Big-Dots"])
def test_neither_case_nor_dashes_matter(table, name):
    assert isinstance(table.card(name), DatasetCard)
    assert table.card(name).name == "big-dots"


def test_unknown_name_gets_close_matches(table):
    with pytest.raises(UnknownNameError, match="Did you mean 'big-dots'"):
        table.card("bigdots")


def test_readers_get_what_all_take_and_what_the_caller_adds(table):
    assert table.read(table.card("big-dots"), {"root": "r"}, {"size": 2}) == ("big-dots", "r", 2)
    given = table.read(table.card("dots-2"), {"root": None}, {"colour": "red"})
    assert given == ("dots_2", None, {"colour": "red"})


def test_argument_a_reader_does_not_take_is_named_with_those_it_takes(table):
    with pytest.raises(ArgumentError, match=r"big-dots does not take colour\. It takes size"):
        table.read(table.card("big-dots"), {"root": None}, {"colour": "red"})


def test_card_may_lie_elsewhere(table, tmp_path):
    (tmp_path / "shop" / "toys" / "lazy.py").write_text("import no_such_package")
    split = Catalogue("shop.toys", {"big-dots": "lazy:read"}, cards={"big-dots": "dots"})
    assert split.card("big-dots").classes == 2
    with pytest.raises(MissingExtraError, match="no-such-package is not installed"):
        split.read(split.card("big-dots"), {}, {})


def test_package_missing_inside_a_reader_names_the_extra(table):
    broken = Catalogue("shop.toys", {"big-dots": "dots:read_missing"})
    with pytest.raises(MissingExtraError, match=r"moeapps\[toys\]"):
        broken.read(broken.card("big-dots"), {"root": None}, {})


def test_fixture_is_made_in_the_folder_of_the_files(table, tmp_path):
    with pytest.raises(ArgumentError, match=r"big-dots has no files of its own"):
        table.make_fixture("big-dots", tmp_path, ("dots", 9), 0, least=3)
    cards = table.module("big-dots").CARDS
    cards["big-dots"] = replace(cards["big-dots"], files=(DataFile("deep/dots.txt"),))
    for wrong in (2, float("nan")):
        with pytest.raises(ArgumentError, match=f"dots={wrong} is too small.*Choose 3 or more"):
            table.make_fixture("big-dots", tmp_path / "home", ("dots", wrong), 0, least=3)
    assert not (tmp_path / "home").exists()
    folder = table.make_fixture("BIG_DOTS", str(tmp_path / "home"), ("dots", 3), 7, least=3)
    assert folder == tmp_path / "home/deep"
    assert (folder / "dots.txt").read_text() == "3 7"
