"""The benchmark of counting: its gates learn, its runs resume, its page is written."""

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module("counting")
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_gates_beat_the_best_expert_and_two_levels_are_no_worse_than_one(benchmark):
    gating = benchmark.counting_gating
    train, test = gating.crowds(gating.TRAIN, 1000), gating.crowds(gating.TEST, 2000)
    for seed in (20, 21, 22):  # not among those that set the bounds
        row = gating.run(seed, train, test)
        for other, bound in gating.BOUNDS.items():
            assert row["hierarchical"] <= bound * row[other]


def test_the_experts_of_the_gating_benchmark_are_right_at_their_scale(benchmark):
    target, experts, features = benchmark.counting_gating.crowds(6, 0)
    assert target.shape == (6, 1, 24, 24)
    assert experts.shape == (6, 3, 24, 24)
    assert features.shape == (6, 8, 6, 6)
    near, far = features[:, 0].mean((1, 2)).argmin(), features[:, 0].mean((1, 2)).argmax()
    off = (experts - target).sum((2, 3)).abs()
    assert off[near].argmin() < 2
    assert off[far].argmin() > 0


def test_finished_runs_are_not_repeated_and_the_page_has_them(benchmark, tmp_path, monkeypatch):
    made = []

    def run(name, split, steps, stage):
        made.append((name, split))
        return {
            "suite": "cells", "stage": stage, "name": name, "split": split, "steps": steps,
            "mae": 3.0 if name == "single" else 2.5, "rmse": 4.0, "bias": 0.1, "train_mae": 2.0,
            "parameters": 1000, "cpu_seconds": 9,
        }  # fmt: skip

    monkeypatch.setattr(benchmark.counting_cells, "run", run)
    arguments = ["--suite", "cells", "--splits", "2", "--steps", "5", "--out", str(tmp_path)]
    benchmark.main([*arguments, "--only", "single"])
    benchmark.main(arguments)
    benchmark.main(arguments)
    names = ["single", "single, parameters of hmode", "flat", "hmode"]
    assert sorted(made) == sorted((name, split) for name in names for split in (0, 1))
    lines = (tmp_path / "counting.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 8
    page = (tmp_path / "counting.md").read_text()
    assert "| hmode | 2 | 2.50 ± 0.00 | 4.00 | 2.00 | +0.50 ± 0.00 (2 of 2) | 1,000 | 9 |" in page


@pytest.mark.parametrize(
    "name", ["single, parameters of hmode", "flat", "hmode", "hmode, scale 1000"]
)
def test_a_step_on_cells_is_finite_and_repeats_itself(benchmark, name):
    cells = benchmark.counting_cells
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 32, 32, generator=generator)
    density = torch.rand(3, 1, 32, 32, generator=generator) / 100
    part = images, density, density.double().sum((1, 2, 3))
    first, second = (cells.fit(name, part, 0, 3) for _ in range(2))
    counts = cells.counts_of(first, images)
    assert counts.isfinite().all()
    assert torch.equal(counts, cells.counts_of(second, images))
