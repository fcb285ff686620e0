"""The examples about streams: run for real where what they need is installed."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from moeapps.streams import HoeffdingTree
from moeapps.streams import load as load_stream

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Workers import moeapps too, also where it is not installed.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", *sys.path]).strip(os.pathsep))
    ray = pytest.importorskip("ray", reason="needs Ray: pip install ray")
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        _node_ip_address="127.0.0.1", object_store_memory=100_000_000,
    )  # fmt: skip
    yield ray
    ray.shutdown()


def test_killed_workers_lose_nothing(ray, tmp_path):
    example = load("streams_ray")
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    calm, workers = example.main(str(tmp_path / "calm"), kill=())
    assert len(workers) == 2
    killed, workers = example.main(str(tmp_path / "killed"), kill=(1, 2, 7))
    assert len(workers) == 5  # three died and were replaced
    assert killed == calm
    # and both are what one process predicts for each key
    stream = list(load_stream("sea_a", limit=5000))
    for key in range(6):
        model = HoeffdingTree(grace_period=50)
        for t in range(key, 5000, 6):
            x, y = stream[t]
            assert killed[t] == model.predict_one(x)
            model.learn_one(x, y)


@pytest.mark.data
def test_tame_keeps_the_tasks_that_one_network_forgets(real_data):
    accuracy = load("streams_tame_mnist").main(tasks=2, epochs=3, rows=6000)
    assert accuracy["TAME"] > accuracy["one network"] + 0.1
