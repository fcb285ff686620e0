"""The guide runs from its first block to its last."""

import re
import shlex
from pathlib import Path

import pytest

from moeapps.cli.main import main
from moeapps.registry import list_models
from moeapps.training.balancing import BALANCINGS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "recsys.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)

for package in ("pyarrow", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason='needs pip install "moeapps[recsys,onnx]"')


def run_command(line):
    words = shlex.split(line)
    if words[0] == "moeapps" and words[1] != "quickstart":
        newest = max(Path("runs").glob("*/*/*"), default="RUN")
        assert main([str(newest) if word == "RUN" else word for word in words[1:]]) == 0, line
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()  # examples have tests of their own


def test_every_block_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in BLOCK.findall(GUIDE.read_text()):
        if language == "python":
            exec(compile(text, str(GUIDE), "exec"), names)
        elif language == "yaml":
            Path("own.yaml").write_text(text)
        else:
            for line in text.splitlines():
                run_command(line)
    assert set(names["problem"].__dict__) == {"level", "kind", "what"}
    assert [o.name for o in names["session"].get_outputs()] == ["click", "watch", "buy"]
    assert Path("predictions.parquet").stat().st_size > 0
    assert names["recsys"].auc(names["labels"][:, 0], names["logits"][:, 0]) > 0.6


def test_the_guide_names_all_models_and_strategies():
    models = [name.removeprefix("recsys/") for name in list_models("recsys/*")]
    assert models
    for name in [*BALANCINGS, *models]:
        assert f"`{name}`" in GUIDE.read_text(), name
