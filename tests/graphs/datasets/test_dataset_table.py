import inspect
import sys

import pytest
import torch

from moeapps import errors
from moeapps.graphs.datasets import DATASETS, card, list_datasets, load


@pytest.mark.parametrize("name", list_datasets())
def test_card_is_that_of_a_graph(name):
    entry = card(name)
    assert entry.metric in ("accuracy", "auroc")
    assert entry.sizes["nodes"] > 0
    assert entry.classes >= 2
    assert all(url.startswith("https://") for file in entry.files for url in file.urls)
    assert bool(entry.files) != (entry.synthetic or name == "karate")


@pytest.mark.parametrize("name", list_datasets())
def test_reader_follows_the_protocol(name):
    read = getattr(DATASETS.module(name), DATASETS[name].partition(":")[2])
    parameters = list(inspect.signature(read).parameters.values())
    assert [p.name for p in parameters[:4]] == ["card", "root", "split", "download"]
    assert all(p.kind is p.KEYWORD_ONLY or p.kind is p.VAR_KEYWORD for p in parameters[1:])


def test_patterns_select():
    assert list_datasets("ogbn*") == ["ogbn-arxiv", "ogbn-products"]
    assert list_datasets("nothing") == []


def test_unknown_argument_is_named():
    with pytest.raises(errors.ArgumentError, match=r"karate does not take colour"):
        load("karate", colour=1)
    with pytest.raises(errors.ArgumentError, match="undirected"):
        load("cora", size="tiny")
    with pytest.raises(errors.ArgumentError, match="has no colour"):
        load("mixed-csbm", colour=1)


def test_sized_synthetic_parameters_pass():
    assert load("mixed-csbm", num_nodes=100).num_nodes == 100


def test_karate_is_there_without_files(check_data):
    data = load("karate", split=3)
    check_data(data, 34, 34)
    assert data.edge_index.shape[1] == 156
    assert not torch.equal(data.test_mask, load("karate").test_mask)


def test_names_are_reachable_from_the_package():
    import moeapps.graphs as graphs

    assert graphs.load is load
    assert graphs.card is card
    assert graphs.mixed_csbm("tiny").num_nodes == graphs.MixedCSBM(num_nodes=400).num_nodes


@pytest.mark.parametrize(
    ("name", "absent"), [("karate", "torch_geometric"), ("mixed-csbm", "torch_geometric")]
)
def test_missing_package_names_the_extra(name, absent, monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == absent]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(errors.MissingExtraError, match=r"torch-geometric.*moeapps\[graphs\]"):
        load(name)
