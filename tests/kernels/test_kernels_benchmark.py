"""The benchmark script runs and writes what it promises; its numbers are not tested."""

import importlib.util
import json
from pathlib import Path

import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


def test_quick_run_writes_json_and_a_table(tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark_kernels", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads = torch.get_num_threads()
    try:
        assert script.main(["--quick", "--no-peers", "--output", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert {"date", "torch", "cpu", "command", "results"} <= report.keys()
    (result,) = report["results"]
    for name in ("loop", "grouped", "layer"):
        assert all(ratio > 0 for ratio in result["ratio_to_dense"][name])
    assert "| 32 x 16, 4, 2, float32 |" in (tmp_path / "kernels.md").read_text()
