"""The configurations of counting parse, build, and train on made-up files or rendered crowds."""

import math
from pathlib import Path

import pytest
import torch

from moeapps.cli.build import build
from moeapps.cli.configs import check_config, read_config
from moeapps.vision import CountingData, CrowdCounter, datasets

FOLDER = Path(__file__).parents[3] / "examples" / "configs" / "vision"
CONFIGS = [path for path in sorted(FOLDER.glob("*.yaml")) if "CrowdCounter" in path.read_text()]
SETS = [n for n in datasets.list_datasets() if datasets.card(n).task.endswith("counting")]
BASELINES = ("single_density", "flat_density_mixture")


def test_every_set_of_counting_has_a_configuration_and_small_ones_the_baselines():
    stems = {path.stem for path in CONFIGS}
    assert {f"hmode_{name.replace('-', '_')}" for name in SETS} <= stems
    small = ("rendered_crowds", "vgg_cells")
    assert {f"{model}_{name}" for model in BASELINES for name in small} <= stems


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_short_and_named_for_what_it_runs(path):
    lines = path.read_text().splitlines()
    assert 10 <= len(lines) <= 30
    assert lines[0].startswith("# ")
    config = read_config(path)
    name = config["data"]["init_args"]["dataset"]
    model = config["model"]["init_args"]["model"]
    assert path.stem == f"{model}_{name}".replace("-", "_")


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_runs(path, tmp_path):
    config = read_config(path)
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    name = data["dataset"]
    if name == "rendered-crowds":
        data["dataset_args"] = {"train": 16, "val": 2, "test": 2, "size": 48}
    else:
        datasets.make_fixture(name, tmp_path, images=20)
        whole = {} if name == "trancos" else {"whole": False}
        data["dataset_args"] = data.get("dataset_args", {}) | whole
        if name == "vgg-cells":
            data["dataset_args"]["train"] = 8
        data |= {"root": str(tmp_path)} | ({"crop": 32} if "crop" in data else {})
    model["model_args"] = model["model_args"] | {
        "backbone": "plain", "strides": [2, 4, 8], "decoder_width": 4,
        "backbone_args": {"widths": [4, 4, 4], "depth": 1},
    }  # fmt: skip
    if model["model"] == "hmode":
        model["model_args"] |= {"slim": True, "gate_widths": [4], "second_widths": [4]}
    config["trainer"] = {"max_epochs": 1, "limit_train_batches": 2, "limit_test_batches": 2}
    check_config(config, source="test")
    part = build(config)
    assert isinstance(part.model, CrowdCounter)
    assert isinstance(part.data, CountingData)
    torch.manual_seed(0)
    trainer = part.make_trainer(callbacks=[], loggers=[], default_root_dir=str(tmp_path))
    trainer.fit(part.model, datamodule=part.data)
    assert math.isfinite(trainer.callback_metrics["val/mae"])
    (numbers,) = trainer.test(part.model, datamodule=part.data, verbose=False)
    assert math.isfinite(numbers["test/rmse"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted_as_it_is(path):
    config = read_config(path)
    check_config(config, source="test")
    config["model"]["init_args"].pop("model_args")  # VGG16 takes seconds to make
    config["model"]["init_args"] |= {
        "model": "single_density", "model_args": {"backbone": "plain", "strides": [2, 4, 8]}
    }  # fmt: skip
    assert isinstance(build(config).data, CountingData)


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*")
def test_a_small_network_counts_real_cells_better_than_their_mean(real_set, tmp_path):
    root = real_set(datasets.card("vgg-cells"))
    config = read_config(FOLDER / "single_density_vgg_cells.yaml")
    config["data"]["init_args"] |= {
        "root": str(root), "crop": 64, "dataset_args": {"train": 50, "val": 4}
    }  # fmt: skip
    config["model"]["init_args"] |= {"lr": 3e-3}
    config["model"]["init_args"]["model_args"]["backbone_args"] = {"widths": [8, 16, 16]}
    config["model"]["init_args"]["model_args"]["decoder_width"] = 8
    config["trainer"] = {"max_epochs": 10, "check_val_every_n_epoch": 10, "limit_test_batches": 40}
    check_config(config, source="test")
    part = build(config)
    torch.manual_seed(0)
    trainer = part.make_trainer(callbacks=[], loggers=[], default_root_dir=str(tmp_path))
    trainer.fit(part.model, datamodule=part.data)
    (numbers,) = trainer.test(part.model, datamodule=part.data, verbose=False)
    assert numbers["test/mae"] < 25  # saying the mean of every image is off by about 50
