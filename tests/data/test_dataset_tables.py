"""What holds for the data sets of every domain: cards, readers, names, files that are missing."""

import inspect
import socket
from importlib import import_module

import pytest

from moeapps import errors
from moeapps.data import DatasetCard

NEEDED = {
    "graphs": ("torch_geometric",),
    "recsys": ("pyarrow",),
    "streams": ("numba",),
    "vision": ("sklearn", "PIL"),
}
TABLES = {domain: import_module(f"moeapps.{domain}.datasets") for domain in NEEDED}
SETS = [(domain, name) for domain, table in TABLES.items() for name in table.list_datasets()]
WITH_FILES = [(domain, name) for domain, name in SETS if TABLES[domain].card(name).files]
every_set = pytest.mark.parametrize(("domain", "name"), SETS)


def need(domain):
    for package in NEEDED[domain]:
        pytest.importorskip(package, reason=f'needs pip install "moeapps[{domain}]"')


@every_set
def test_card_tells_what_where_from_and_under_which_licence(domain, name):
    card = TABLES[domain].card(name)
    assert isinstance(card, DatasetCard)
    assert (card.domain, card.name) == (domain, name)
    assert card.sizes
    for text in (
        card.title, card.task, card.metric, card.splits, card.licence, card.source, card.citation
    ):  # fmt: skip
        assert text
    assert card.url.startswith("https://")
    assert len({file.name for file in card.files}) == len(card.files)
    assert not (card.files and card.synthetic)


@every_set
def test_reader_takes_the_card_and_everything_else_by_keyword(domain, name):
    need(domain)
    table = TABLES[domain].DATASETS
    reader = getattr(table.module(name), table[name].partition(":")[2])
    first, *others = inspect.signature(reader).parameters.values()
    assert first.name == "card"
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in others)
    if table.card(name).files:
        assert {"root", "download"} <= {p.name for p in others}


@pytest.mark.parametrize(("domain", "name"), WITH_FILES)
def test_missing_set_names_page_and_file_and_never_asks_the_network(
    domain, name, tmp_path, monkeypatch
):
    need(domain)
    monkeypatch.setattr(socket.socket, "connect", None)
    card = TABLES[domain].card(name)
    with pytest.raises(errors.DataNotFoundError) as caught:
        TABLES[domain].load(name, root=tmp_path)
    for text in (card.source, card.url, str(tmp_path), card.files[0].path):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("domain", "wrong", "close"),
    [
        ("graphs", "corra", "cora"),
        ("recsys", "kuaireck", "kuairec"),
        ("streams", "shutle", "shuttle"),
        ("vision", "cifar10-tl", "cifar10"),
    ],
)
def test_unknown_name_gets_close_matches(domain, wrong, close):
    for call in (TABLES[domain].card, TABLES[domain].load):
        with pytest.raises(errors.UnknownNameError, match=f"Did you mean '{close}"):
            call(wrong)
