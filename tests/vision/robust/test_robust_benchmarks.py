"""The benchmark scripts run and write what they promise; their numbers are not tested."""

import importlib
import json
import logging
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason='needs pip install "moeapps[vision]"')
SCRIPTS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads, level = torch.get_num_threads(), logging.getLogger("lightning.pytorch").level
    yield importlib.import_module
    torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(level)


@pytest.mark.filterwarnings("ignore")
def test_digits_are_attacked_once_and_tabled(script, tmp_path):
    arguments = ["--quick", "--seeds", "1", "--out", str(tmp_path), "--only"]
    main = script("adversarial_digits").main
    main([*arguments, "sdense", "groups"])
    runs = tmp_path / "adversarial_digits.jsonl"
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["sdense", "groups", "groups_fallback"]
    assert all(row["worst"] <= row["worst_fixed"] <= row["clean"] for row in rows)
    assert rows[0]["macs"] == pytest.approx(rows[1]["macs"], rel=0.02)
    before = runs.read_text()
    main([*arguments, "sdense"])
    assert runs.read_text() == before
    page = (tmp_path / "adversarial_digits.md").read_text()
    assert "dense, cost of the mixture" in page
    assert "groups, all pathways" in page


def test_convolutions_are_timed_and_equal(script, capsys):
    script("moe_conv").main(["--quick", "--repeats", "1"])
    assert "| 2 | 8 | 4 -> 4 |" in capsys.readouterr().out
