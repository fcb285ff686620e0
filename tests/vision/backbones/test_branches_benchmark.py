"""The script runs and writes what it promises; its numbers are not tested."""

import importlib
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    yield importlib.import_module("branches")
    torch.set_num_threads(threads)


def test_lines_and_table(script):
    rows = [*script.forward_lines(1, 0.0), *script.exit_lines(32, 0.0)]
    assert len(rows) == 8 + 8
    text = script.table([{**row, "machine": "here"} for row in rows])
    assert text.count("\n| ") == 2 + len(rows)


@pytest.mark.parametrize("mean", [1.25, 1.5, 2.0])
def test_the_draw_gives_the_mean_number_of_experts(script, mean):
    draw, active, used = script.Draw(mean), torch.zeros(20_000, 1), 20_000
    for _ in range(2):
        active = active[draw(active, None)]
        used += len(active)
    assert used / 20_000 == pytest.approx(mean, abs=0.02)
