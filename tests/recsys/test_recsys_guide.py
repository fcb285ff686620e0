"""The guide runs from its first block to its last."""

from pathlib import Path

import pytest

from moeapps.registry import list_models
from moeapps.training.balancing import BALANCINGS

GUIDE = Path(__file__).parents[2] / "docs" / "recsys.md"

for package in ("pyarrow", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason='needs pip install "moeapps[recsys,onnx]"')


def test_every_block_of_the_guide_runs(run_guide):
    names = run_guide("recsys.md")
    assert set(names["problem"].__dict__) == {"level", "kind", "what"}
    assert [o.name for o in names["session"].get_outputs()] == ["click", "watch", "buy"]
    assert Path("predictions.parquet").stat().st_size > 0
    assert names["recsys"].auc(names["labels"][:, 0], names["logits"][:, 0]) > 0.6


def test_the_guide_names_all_models_and_strategies():
    models = [name.removeprefix("recsys/") for name in list_models("recsys/*")]
    assert models
    for name in [*BALANCINGS, *models]:
        assert f"`{name}`" in GUIDE.read_text(), name
