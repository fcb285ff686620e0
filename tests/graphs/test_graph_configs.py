"""Every configuration parses, builds, and runs where its data is at hand."""

from pathlib import Path

import pytest
import torch

from moeapps.cli.build import build
from moeapps.cli.configs import check_config, read_config
from moeapps.graphs import MowstClassifier, NodeData, datasets

FOLDER = Path(__file__).parents[2] / "examples" / "configs" / "graphs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))

# data, backbone: Mowst*?, pretrain, gate sees features, h, L, rates, weight decay, dropouts
RELEASED = {
    ("flickr", "gcn"): (False, "strong", False, 128, 3, 0.1, 0.1, 5e-4, 0.3, 0.5),
    ("flickr", "graphsage"): (True, "both", True, 12, 3, 0.01, 0.01, 5e-4, 0.5, 0.5),
    ("ogbn-arxiv", "gcn"): (True, "strong", True, 256, 3, 1e-3, 1e-3, 0, 0.2, 0.5),
    ("ogbn-arxiv", "graphsage"): (False, "strong", False, 512, 4, 0.01, 0.01, 0, 0.3, 0.5),
    ("ogbn-products", "gcn"): (True, "strong", True, 256, 3, 0.01, 0.01, 0, 0.5, 0.5),
    ("ogbn-products", "graphsage"): (True, "weak", True, 256, 3, 0.01, 0.01, 0, 0.1, 0.5),
    ("penn94", "gcn"): (True, "strong", False, 64, 2, 0.1, 0.01, 1e-3, 0.1, 0.5),
    ("penn94", "graphsage"): (True, "strong", True, 32, 2, 0.01, 1e-3, 1e-3, 0.5, 0.5),
    ("pokec", "gcn"): (True, "weak", False, 64, 2, 0.1, 1e-3, 1e-3, 0.2, 0.3),
    ("pokec", "graphsage"): (False, "strong", True, 12, 2, 0.1, 0.1, 1e-3, 0.1, 0.1),
    ("twitch-gamer", "gcn"): (True, "none", False, 64, 2, None, 0.1, 1e-3, 0.2, 0.1),
    ("twitch-gamer", "graphsage"): (False, "strong", False, 32, 2, 0.01, 0.01, 1e-3, 0.3, 0.1),
}


def built(path):
    config = read_config(path)
    check_config(config, source=str(path))
    return build(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_short_and_builds(path):
    lines = path.read_text().splitlines()
    assert 10 <= len(lines) <= 30
    assert lines[1] == "schema: 1"
    module, data = built(path).model, built(path).data
    assert isinstance(module, MowstClassifier)
    assert isinstance(data, NodeData)
    assert data.dataset in datasets.list_datasets()


def test_every_published_pair_has_the_released_settings():
    found = {}
    for path in CONFIGS:
        part = built(path)
        h = part.model.hparams
        found[part.data.dataset, h.strong] = (
            h.joint, h.pretrain, h.gate == "learned+features", h.hidden_channels, h.num_layers,
            None if h.pretrain == "none" else h.lr_pretrain, h.lr, h.weight_decay, h.dropout,
            h.gate_dropout,
        )  # fmt: skip
    assert {pair: found.get(pair) for pair in RELEASED} == RELEASED
    assert {"cora", "citeseer", "minesweeper", "tolokers", "actor", "mixed-csbm"} <= {
        dataset for dataset, _ in found
    }


def dry_run(path, tmp_path):
    part = built(path)
    torch.manual_seed(0)
    run = part.make_trainer(callbacks=[], loggers=[], default_root_dir=str(tmp_path))
    run.fit_loop.max_epochs = 1
    run.fit(part.model, datamodule=part.data)
    (numbers,) = run.test(part.model, datamodule=part.data, verbose=False)
    assert 0 <= numbers["test/acc"] <= 1


def test_synthetic_config_runs(tmp_path):
    dry_run(FOLDER / "mowst_mixed_csbm.yaml", tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_runs_on_real_data(real_set, path, tmp_path):
    real_set(datasets.card(built(path).data.dataset))
    dry_run(path, tmp_path)
