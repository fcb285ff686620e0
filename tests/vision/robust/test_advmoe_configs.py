"""The configurations of AdvMoE parse, build and train."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moeapps.cli.build import build
from moeapps.cli.configs import check_config, read_config
from moeapps.vision import AdversarialClassifier, PixelData, datasets
from moeapps.vision.export import export_inputs, export_network

pytest.importorskip("sklearn", reason='needs pip install "moeapps[vision]"')
EXAMPLES = Path(__file__).parents[3] / "examples"
CONFIGS = sorted((EXAMPLES / "configs" / "vision").glob("advmoe_*.yaml"))


def test_there_are_configurations():
    assert len(CONFIGS) >= 4


@pytest.mark.filterwarnings("ignore::moeapps.errors.CollapseWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_runs(path, tmp_path):
    config = read_config(path)
    data = config["data"]["init_args"]
    if data["dataset"] != "digits":
        datasets.make_fixture(data["dataset"], tmp_path, images=60)
        data |= {"root": str(tmp_path), "batch_size": 8}
        config["model"]["init_args"]["model_args"] |= {"ratio": 0.05, "router_depth": 8}
    config["model"]["init_args"] |= {"test_steps": 2, "on_collapse": "warn", "group_after": 1}
    config["trainer"] = {"max_epochs": 2, "limit_train_batches": 1, "limit_test_batches": 1}
    check_config(config, source="test")
    part = build(config)
    assert isinstance(part.model, AdversarialClassifier)
    assert isinstance(part.data, PixelData)
    trainer = part.make_trainer(callbacks=[], loggers=[], default_root_dir=str(tmp_path))
    trainer.fit(part.model, datamodule=part.data)
    (numbers,) = trainer.test(part.model, datamodule=part.data, verbose=False)
    assert math.isfinite(numbers["test/robust_accuracy/adaptive"])


def test_the_example_runs(capsys):
    runpy.run_path(str(EXAMPLES / "vision_advmoe.py"))["main"](epochs=1, tested=8)
    assert capsys.readouterr().out.count("worst case of each image") == 2


def test_a_run_on_digits_exports_what_it_computes(tmp_path):
    module = AdversarialClassifier("advmoe", model_args={"backbone": "small_cnn", "ratio": 0.5})
    data = PixelData("digits")
    data.setup("fit")
    module.trainer = SimpleNamespace(datamodule=data)
    module.setup("fit")
    network = export_network(module.eval())
    images, shapes = export_inputs(module)
    program = torch.export.export(network, images(1), dynamic_shapes=shapes).module()
    with torch.no_grad():
        expected = network(*images(3))["probability"]
        torch.testing.assert_close(program(*images(3))["probability"], expected)
    assert expected.shape == (19, 10)
