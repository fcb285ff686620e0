"""The benchmark runs, resumes and renders; its numbers are not tested."""

import importlib
import json
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def test_suite_writes_each_run_once_and_a_table_beside_the_study(script, tmp_path):
    arguments = ["--suite", "pair_digits", "--quick", "--seeds", "1", "--output", str(tmp_path)]
    arguments += ["--settings", "short", "--models", "CE", "BS 1"]
    main = script("longtail").main
    assert main(arguments) == 0
    (runs,) = tmp_path.glob("*.jsonl")
    first = runs.read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["model"] for row in rows] == ["CE", "BS 1"]
    assert {"post_hoc", "balanced_accuracy", "accuracy/few", "ece"} <= set(rows[0]["test"])
    assert main(arguments) == 0
    assert runs.read_text() == first
    table = (tmp_path / "longtail.md").read_text()
    assert "| BS 1 | 80,752 | 1 |" in table
    assert "0.604" in table
    assert "Balanced Softmax beats cross-entropy" in table


def test_networks_have_the_sizes_of_the_study(script):
    longtail = script("longtail")
    suite = longtail.SUITES["pair_digits"]
    data = suite.load(0, quick=True)
    data.setup()
    sizes = {}
    for name in ("CE", "BS w", "BS 3", "RIDE 3", "SADE 3", "BalPoE 3", "MDCS 3", "TLC 3"):
        module = longtail.make_module(suite, suite.entries[name], 25)
        for key in ("num_classes", "class_counts", "in_channels"):
            module.hparams[key] = getattr(data, key)
        sizes[name] = sum(p.numel() for p in module.build().parameters())
    assert sizes.pop("CE") == 80_752
    assert sizes.pop("BS w") == 130_932
    assert set(sizes.values()) == {139_344}


def test_chosen_exit_is_the_cheapest_that_is_as_good_on_validation_images(script):
    chosen = script("longtail_engagement").chosen_exit
    exits = [
        {"exit": "a", "val": 0.6, "test": 0.9, "experts": 1.1},
        {"exit": "b", "val": 0.7, "test": 0.5, "experts": 1.5},
        {"exit": "c", "val": 0.7, "test": 0.9, "experts": 2.0},
    ]
    assert chosen({"whole": {"val": 0.7}, "exits": exits})["exit"] == "b"


def test_schedule_keeps_the_shape_of_the_published_one(script):
    schedule = script("longtail").schedule
    assert schedule(200) == {"milestones": [160, 180], "gamma": 0.1, "warmup_epochs": 5}
    assert schedule(25)["milestones"] == [20, 22]
