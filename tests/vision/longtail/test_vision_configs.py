"""Every configuration parses, builds, and those on digits or fixtures run."""

import math
import warnings
from pathlib import Path

import pytest
import torch

from moeapps.cli.build import build
from moeapps.cli.configs import check_config, read_config
from moeapps.vision import datasets
from moeapps.vision.longtail.datamodules import LongTailData
from moeapps.vision.longtail.modules import LongTailClassifier

FOLDER = Path(__file__).parents[3] / "examples" / "configs" / "vision"
CONFIGS = [
    path for path in sorted(FOLDER.glob("*.yaml")) if "LongTailClassifier" in path.read_text()
]


def built(config):
    check_config(config, source="test")
    return build(config)


def test_every_method_has_a_configuration_for_every_small_set():
    methods = ("cross_entropy", "balanced_softmax", "ldam", "ride", "sade", "balpoe", "mdcs", "tlc")
    sets = ("digits_lt", "pair_digits_lt", "cifar10_lt", "cifar100_lt")
    assert {f"{method}_{one}" for method in methods for one in sets} <= {p.stem for p in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_short_and_builds(path):
    lines = path.read_text().splitlines()
    assert 10 <= len(lines) <= 30
    assert lines[0].startswith("# ")
    assert next(line for line in lines if not line.startswith("#")) == "schema: 1"
    found = built(read_config(path))
    assert isinstance(found.model, LongTailClassifier)
    assert isinstance(found.data, LongTailData)
    assert found.data.dataset in datasets.list_datasets()
    assert path.stem == f"{found.model.hparams['model']}_{found.data.dataset}".replace("-", "_")


def dry_run(config, tmp_path, **limits):
    """One epoch of a few batches, and a test."""
    arguments = config["model"]["init_args"]
    if arguments["model_args"].get("backbone") == "resnet32":
        arguments["model_args"]["backbone"] = "resnet8"
    if arguments.get("early_exit") == "assignment":
        arguments["early_exit_args"] |= {"epochs": 1, "batch_size": 32}
    if arguments.get("test_time"):
        arguments["test_time_args"] = {"epochs": 1}
    config["trainer"] = {"limit_train_batches": 2, "limit_val_batches": 1, **limits}
    part = built(config)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        run = part.make_trainer(callbacks=[], loggers=[], default_root_dir=str(tmp_path))
        run.fit_loop.max_epochs = 1
        run.fit(part.model, datamodule=part.data)
        (numbers,) = run.test(part.model, datamodule=part.data, verbose=False)
    assert math.isfinite(numbers["test/loss"])
    assert 0 <= numbers["test/accuracy"] <= 1


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem.endswith("digits_lt")], ids=lambda p: p.stem
)
def test_config_on_digits_runs(path, tmp_path):
    dry_run(read_config(path), tmp_path)


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if "cifar" in path.stem], ids=lambda path: path.stem
)
def test_config_on_cifar_runs_on_a_fixture(path, tmp_path):
    config = read_config(path)
    arguments = config["data"]["init_args"]
    datasets.make_fixture(arguments["dataset"], tmp_path, images=200)
    arguments |= {
        "root": str(tmp_path), "imbalance": 1, "empty_classes": "drop", "batch_size": 8,
        "dataset_args": {"largest": 1},
    }  # fmt: skip
    dry_run(config, tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if "cifar10_" in path.stem], ids=lambda path: path.stem
)
def test_config_on_cifar10_runs_on_real_images(real_set, path, tmp_path):
    config = read_config(path)
    config["data"]["init_args"]["root"] = str(real_set(datasets.card("cifar10-lt")))
    dry_run(config, tmp_path, limit_test_batches=1)
