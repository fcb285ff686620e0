"""The examples run; short, so that they only show that nothing in them is out of date."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_moe_layer_learns():
    assert load("moe_layer").main(steps=100) < 0.3


def test_mowst_in_your_loop_learns():
    assert load("mowst_in_your_loop").main(epochs=40) > 0.85


def test_quickstart_graphs_trains_all_three():
    accuracies = load("quickstart_graphs").main(epochs=15)
    assert list(accuracies) == ["MLP", "GCN", "Mowst-GCN"]
    assert min(accuracies.values()) > 0.5


def test_quickstart_recsys_trains_all_four():
    scores = load("quickstart_recsys").main(epochs=1)
    assert list(scores) == ["shared_bottom", "mmoe", "ple", "home"]
    assert min(scores.values()) > 0.8


def test_recsys_own_files_learns_both_tasks():
    pytest.importorskip("pyarrow", reason='needs pip install "moeapps[recsys]"')
    click, buy = load("recsys_own_files").main(rows=20_000)
    assert click > 0.75
    assert buy > 0.6


def test_vision_longtail_trains_both():
    scores = load("vision_longtail").main(epochs=8)
    assert list(scores) == ["balanced_softmax", "ride"]
    assert min(scores.values()) > 0.4


def test_vision_own_images_learns():
    assert load("vision_own_images").main(epochs=8) > 0.4


def test_vision_cosmo_answers_among_seen_and_unseen_classes():
    scores = load("vision_cosmo").main(images_per_class=10)
    assert min(scores.values()) > 0.5


def test_vision_customization_helps_the_user():
    found = load("vision_customization").main(steps=100)
    assert found["mixture"] > found["global"] + 0.2


def test_vision_specialists_know_their_verticals():
    scores = load("vision_specialists").main(steps=60)
    assert list(scores) == ["specialists", "generalist", "student"]
    assert scores["specialists"] > 0.2  # chance is about 0.13


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) <= 60


def test_the_gate_runs_the_command_of_the_readme():
    gate = (ROOT / ".ci/run").read_text()
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- test command -->\n```\n(.*)\n```", readme)[1]
    extract = re.search(r"command=\$\((.*)\)\n", gate)[1]
    found = subprocess.run(
        ["bash", "-c", extract], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert found == command
