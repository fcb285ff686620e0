"""The benchmark of streams runs, resumes and writes what it promises."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "streams.py"
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


def test_committed_table_is_that_of_the_committed_numbers(script):
    table = json.loads((RESULTS / "streams.json").read_text())
    told = (RESULTS / "streams.md").read_text()
    for model in ("RoutedBagging accurate", script.REFERENCE):
        mean = sum(cell["accuracy"] for cell in table[model].values()) / len(table[model])
        assert f"| {100 * mean:.2f} |" in told
