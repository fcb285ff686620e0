"""The benchmark of streams runs, resumes and writes what it promises."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "streams.py"
RESULTS = SCRIPT.parent / "results"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("streams_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))  # as for a script
        spec.loader.exec_module(module)
    return module


def run(script, monkeypatch, out, *models):
    arguments = ["--streams", "sea_a", "--limit", "600", "--seeds", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["streams.py", *arguments, "--models", *models])
    script.main()


def test_runs_are_written_and_not_repeated(script, monkeypatch, tmp_path, capsys):
    run(script, monkeypatch, tmp_path, "HoeffdingTree", "RoutedBagging fast")
    lines = (tmp_path / "streams.jsonl").read_text().splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["HoeffdingTree", "RoutedBagging fast"]
    # A kill cuts the last line short: that run is repeated, the other one is not.
    (tmp_path / "streams.jsonl").write_text("\n".join([lines[0], lines[1][:20]]) + "\n")
    run(script, monkeypatch, tmp_path, "HoeffdingTree", "RoutedBagging fast")
    again = (tmp_path / "streams.jsonl").read_text().splitlines()
    assert again[0] == lines[0]
    assert len(again) == 3
    first, second = json.loads(lines[1]), json.loads(again[2])
    assert first["accuracy"] == second["accuracy"] > 0.6
    assert "| RoutedBagging fast | 0.00 |" not in capsys.readouterr().out
    assert "| HoeffdingTree |" in (tmp_path / "streams.md").read_text()


def test_dicts_and_arrays_give_one_accuracy(script):
    model, _ = script.models()["RoutedBagging balanced"]
    by_dict, slow = script.models()["RoutedBagging balanced, dicts"]
    stream = script.load("sea_a", 500, 3)
    right, seconds = model(stream, 1)
    again, _ = by_dict(stream, 1)
    assert slow
    assert seconds > 0
    assert abs(right - again) <= 1  # before the first label a dict gets no answer at all


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("streams.md")), ids=lambda p: p.parent.name)
def test_committed_tables_are_those_of_the_committed_runs(script, path):
    told = path.read_text()
    command = re.search(r"--limit (\d+) --slow-limit (\d+)", told)
    limits = int(command[1]), int(command[2])
    table = script.StreamRuns(path.with_suffix(".jsonl")).table(limits)
    assert table == json.loads(path.with_suffix(".json").read_text())
    out = script.RESULTS if path.parent == RESULTS else path.parent.relative_to(ROOT)
    assert script.render(table, limits=limits, out=out) == told


def test_deviation_is_told_where_there_is_one_and_means_only_of_whole_rows(script):
    def cell(accuracy, spread):
        return {"accuracy": accuracy, "spread": spread, "rate": 10.0, "seeds": 2}

    table = {
        script.REFERENCE: {"sea_a": cell(0.8, 0.01), "weather": cell(0.6, 0.0)},
        "HoeffdingTree": {"sea_a": cell(0.75, 0.0)},
    }
    told = script.render(table, limits=(600, 300))
    assert f"| {script.REFERENCE} | 80.00 ± 1.00 | 60.00 | 70.00 |" in told
    assert "| HoeffdingTree | 75.00 |  |  |" in told
    assert "| HoeffdingTree | 1.0 |  |  |" in told  # as fast as the reference
    assert "Through dicts" not in told
