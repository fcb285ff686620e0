"""Every configuration parses, builds, and runs where its data is at hand."""

import math
from pathlib import Path

import pytest
import torch

from moeapps.cli.build import build
from moeapps.cli.configs import check_config, parse_yaml, read_config
from moeapps.recsys import RankingData, RankingFiles, datasets
from moeapps.recsys.modules import MultiTaskRanker

FOLDER = Path(__file__).parents[2] / "examples" / "configs" / "recsys"
CONFIGS = sorted(FOLDER.glob("*.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore:Task:UserWarning")


def built(config, source="test"):
    check_config(config, source=source)
    return build(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_short_and_builds(path):
    lines = path.read_text().splitlines()
    assert 10 <= len(lines) <= 30
    assert lines[1] == "schema: 1"
    found = built(read_config(path))
    assert isinstance(found.model, MultiTaskRanker)
    assert isinstance(found.data, RankingData)
    assert found.data.dataset in datasets.list_datasets()
    assert path.stem == f"{found.model.hparams['model']}_{found.data.dataset}".replace("-", "_")


def dry_run(config, tmp_path):
    config["trainer"] = {**(config.get("trainer") or {}), "limit_train_batches": 8}
    part = built(config)
    torch.manual_seed(0)
    run = part.make_trainer(callbacks=[], loggers=[], default_root_dir=str(tmp_path))
    run.fit_loop.max_epochs = 1
    run.fit(part.model, datamodule=part.data)
    (numbers,) = run.test(part.model, datamodule=part.data, verbose=False)
    assert math.isfinite(numbers["test/loss"])
    assert 0 <= numbers.get("test/auc_mean", 0.5) <= 1


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*_short_video.yaml")), ids=lambda p: p.stem)
def test_synthetic_config_runs(path, tmp_path):
    config = read_config(path)
    arguments = config["data"]["init_args"]
    arguments["batch_size"] = 256
    arguments["dataset_args"] |= {"rows": 2_000, "val_rows": 1_000, "test_rows": 1_000}
    dry_run(config, tmp_path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*_census_income.yaml")), ids=lambda p: p.stem)
def test_census_config_runs_on_the_sample(path, tmp_path):
    config = read_config(path)
    config["data"]["init_args"]["dataset"] = "census-income-sample"
    dry_run(config, tmp_path)


OTHERS = [p for p in CONFIGS if not p.stem.endswith(("_short_video", "_census_income"))]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_other_config_runs_on_a_fixture(path, tmp_path):
    config = read_config(path)
    arguments = config["data"]["init_args"]
    if datasets.card(arguments["dataset"]).files:
        datasets.make_fixture(arguments["dataset"], tmp_path)
        arguments["root"] = str(tmp_path)
    else:
        arguments["dataset_args"] |= {"rows": 500, "val_rows": 100, "test_rows": 100}
    arguments["batch_size"] = 64
    dry_run(config, tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_runs_on_real_data(real_set, path, tmp_path):
    config = read_config(path)
    real_set(datasets.card(config["data"]["init_args"]["dataset"]))
    dry_run(config, tmp_path)


OWN = """
schema: 1
model: {class_path: MultiTaskRanker, init_args: {model: mmoe, model_args: {expert_dims: [8]}}}
data:
  class_path: RankingFiles
  init_args:
    train: FOLDER/train.csv
    val: FOLDER/val.csv
    csv: {delimiter: ";"}
    schema:
      features:
        - {kind: categorical, name: user, vocab_size: 1, dim: 4}
        - {kind: dense, name: price, transform: log1p}
    tasks: [click, {name: pay, type: regression, sample_mask: click}]
    batch_size: 32
"""


def test_own_files_can_be_configured(tmp_path):
    pytest.importorskip("pyarrow", reason='needs pip install "moeapps[recsys]"')
    for name in ("train", "val"):
        rows = [f"u{i % 9};{i};{i % 2};{i / 7:.2f}" for i in range(200)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["user;price;click;pay", *rows]) + "\n")
    text = OWN.replace("FOLDER", str(tmp_path))
    config = parse_yaml(text, source="test")
    assert isinstance(built(config).data, RankingFiles)
    dry_run(parse_yaml(text, source="test"), tmp_path)
