"""The benchmark scripts run and write what they promise; their numbers are not tested."""

import importlib
import json
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("suite", "setting", "models"),
    [
        ("short_video", "conflict", ["HoME", "PLE*"]),
        ("two_task", "0.5", ["OMoE", "MMoE"]),
        ("census", "income-marital", ["SharedBottom", "AITM"]),
    ],
)
def test_a_suite_writes_runs_once_and_a_table_of_what_is_missing(
    script, tmp_path, suite, setting, models
):
    arguments = ["--suite", suite, "--quick", "--seeds", "1", "--output", str(tmp_path)]
    arguments += ["--settings", setting, "--models", *models]
    main = script("recsys").main
    assert main(arguments) == 0
    [runs] = tmp_path.glob("*.jsonl")
    first = runs.read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["model"] for row in rows if row["seed"] == 0][-1] == models[-1]
    assert all(row["steps"] > 0 and row["weights"] > 0 for row in rows)
    assert main(arguments) == 0
    assert runs.read_text() == first
    table = runs.with_suffix(".md").read_text()
    assert all(f"| {model} |" in table for model in models)
    assert "## Missing runs" in table


def test_equal_weights_are_those_of_the_reference_as_nearly_as_the_size_allows(script, tmp_path):
    recsys = script("recsys")
    runs = recsys.RankingRuns("short_video", tmp_path, quick=True)
    data, entries = runs.data("conflict", 0), runs.suite.entries
    budget = recsys.count_weights(entries["HoME"], 3, data)
    size = recsys.nearest_size(entries["MMoE"], budget, data)
    off = {
        n: abs(recsys.count_weights(entries["MMoE"], n, data) - budget)
        for n in (size - 1, size, size + 1)
    }
    assert min(off, key=off.get) == size


def test_the_paired_difference_needs_twice_its_standard_error(script):
    tables = script("recsys_tables")
    assert tables.verdict(0.02, 0.011) == "no clear difference"
    assert tables.verdict(0.03, 0.011) == "better"
    assert tables.verdict(-0.03, 0.011) == "worse"
    ours, theirs = {0: {"x": 3.0}, 1: {"x": 5.0}}, {0: {"x": 2.0}, 1: {"x": 2.0}, 2: {"x": 9.0}}
    mean, error, count = tables.paired(ours, theirs, lambda row: row["x"])
    assert (mean, error, count) == (2.0, 1.0, 2)


def test_the_speed_benchmark_times_what_needs_no_peer(script, tmp_path):
    arguments = ["--quick", "--only", "tables", "home", "--output", str(tmp_path)]
    assert script("recsys_speed").main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "recsys_speed_quick.jsonl").open()]
    assert [row["kind"] for row in rows] == ["tables", "home"]
    assert all(row["ours_ms"] > 0 and row["ratio"] > 0 for row in rows)
    assert "| home | PLE |" in (tmp_path / "recsys_speed_quick.md").read_text()
