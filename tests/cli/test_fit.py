"""Whole commands on the tiny generated graph: what they leave behind, how they fail."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric", reason='needs pip install "moeapps[graphs]"')

from moeapps.cli.main import main
from moeapps.graphs.turn_module import TurnModule
from moeapps.training import load_model
from moeapps.training.checkpoints import AtomicCheckpointIO, load_checkpoint
from moeapps.training.runs import RunFolder

CONFIG = """
schema: 1
model:
  class_path: MowstClassifier
  init_args: {strong: gcn, hidden_channels: 16, pretrain: both, epochs: 6, patience: 3, rounds: 2}
data:
  class_path: NodeData
  init_args:
    dataset: mixed-csbm
    dataset_args: {size: tiny}
trainer: {accelerator: cpu}
"""


def only(root: Path) -> RunFolder:
    (config,) = root.glob("*/*/*/config.yaml")
    return RunFolder.open(config.parent)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_checkpoint(run.best)["state_dict"]


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert one.metrics_file.read_text() == other.metrics_file.read_text()
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "mowst_tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    assert main(["fit", "--config", str(config), "--runs", str(root)]) == 0
    return only(root)


@pytest.fixture
def fit(config, tmp_path):
    return lambda *more: main(["fit", "--config", str(config), "--runs", str(tmp_path), *more])


def error(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


# -- what a run leaves behind ---------------------------------------------------------------------


def test_run_folder_holds_everything(run):
    assert run.path.parent.name == "mowst_gcn_mixed-csbm"
    assert run.path.parent.parent.name == "graphs"
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        "config.yaml", "environment.txt", "metrics.csv", "checkpoints", "results.npz",
        "report.json", "report.md", "report.html", "figures",
    }  # fmt: skip
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.ckpt", "best.ckpt"}
    facts = run.read_report()
    assert facts["status"] == "complete"
    assert facts["synthetic"] is True
    assert facts["epochs"] == len(set(run.read_metrics()["step"])) - 1  # the last row is the test
    assert "synthetic data" in (run.path / "report.md").read_text().splitlines()[0]


def test_tested_weights_are_the_validation_chosen_ones(run):
    results, facts = run.read_results(), run.read_report()
    chosen = max(
        score for score, phase in zip(results["turn_best"], results["turn_phase"], strict=True)
        if not phase.startswith("pretrain")
    )  # fmt: skip
    val = results["val_mask"]
    c = results["confidence"][val]
    expected = np.mean(c * results["weak_correct"][val] + (1 - c) * results["strong_correct"][val])
    assert expected == pytest.approx(chosen, abs=1e-6)
    test = results["test_mask"]
    assert facts["metrics"]["test/acc"] == pytest.approx(results["mixture_correct"][test].mean())


def test_checkpoint_holds_plain_values_only(run):
    for file in (run.best, run.last):
        assert load_checkpoint(file)["moeapps_config"]["schema"] == 1


def test_test_rebuilds_from_the_checkpoint_file_alone(run, tmp_path, capsys):
    moved = tmp_path / "moved.ckpt"
    shutil.copy(run.best, moved)
    assert main(["test", "--ckpt", str(moved)]) == 0
    out = capsys.readouterr().out
    for name, value in run.read_report()["metrics"].items():
        assert f"{value:.4f}" in next(line for line in out.splitlines() if line.startswith(name))


def test_validate_scores_the_validation_part(run, capsys):
    assert main(["validate", "--ckpt", str(run.path)]) == 0
    results = run.read_results()
    accuracy = results["mixture_correct"][results["val_mask"]].mean()
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("val/acc "))
    assert f"{accuracy:.4f}" in line


@pytest.mark.parametrize("name", ["p.csv", "p.npz"])
def test_predictions_are_one_row_per_node(run, tmp_path, name):
    out = tmp_path / name
    assert main(["predict", "--ckpt", str(run.path), "--out", str(out)]) == 0
    if name.endswith("npz"):
        label, confidence = np.load(out)["label"], np.load(out)["confidence"]
    else:
        table = np.genfromtxt(out, delimiter=",", names=True)
        label, confidence = table["label"].astype(int), table["confidence"]
    results = run.read_results()
    np.testing.assert_allclose(confidence, results["confidence"], atol=1e-6)
    np.testing.assert_array_equal(label == results["label"], results["mixture_correct"])


def test_report_is_drawn_again_from_the_folder_alone(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    shutil.rmtree(copy / "checkpoints")
    shutil.rmtree(copy / "figures")
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0
    figures = {path.name for path in (copy / "figures").iterdir()}
    assert figures == {path.name for path in run.figures.iterdir()}
    assert {"confidence_homophily.png", "accuracy_confidence.png", "curves_turns.png"} <= figures
    for name in figures:
        assert (copy / "figures" / name).read_bytes() == (run.figures / name).read_bytes()
    assert (copy / "report.html").read_text().count("data:image/png") == len(figures)


def test_report_of_a_damaged_folder_names_the_file(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "results.npz").write_bytes(b"PK")
    assert main(["report", str(copy)]) == 2
    assert "results.npz is damaged" in error(capsys)


def test_safetensors_export_gives_the_same_network(run, tmp_path):
    assert main(["export", str(run.path), "--out", str(tmp_path)]) == 0
    network = load_model(tmp_path)
    own = {name.removeprefix("model."): value for name, value in weights(run).items()}
    assert network.state_dict().keys() == own.keys()
    x, edge_index = torch.randn(9, 32), torch.randint(9, (2, 20))
    with torch.no_grad():
        before = network(x, edge_index)
        network.load_state_dict(own)
        assert torch.equal(network(x, edge_index), before)


def test_damaged_export_is_refused(run, tmp_path):
    from moeapps.errors import CheckpointError, ConfigError

    assert main(["export", str(run.path), "--out", str(tmp_path)]) == 0
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load_model(tmp_path)
    file.write_bytes(whole)
    good = json.loads(config.read_text())
    config.write_text(json.dumps({**good, "class_path": "os.system"}))
    with pytest.raises(ConfigError, match="may not use"):
        load_model(tmp_path)
    config.write_text(
        json.dumps({**good, "init_args": {**good["init_args"], "hidden_channels": 8}})
    )
    with pytest.raises(CheckpointError, match="another model"):
        load_model(tmp_path)


def test_torch_export_runs_on_graphs_of_other_sizes(run, tmp_path):
    assert main(["export", str(run.path), "--format", "torch", "--out", str(tmp_path)]) == 0
    assert main(["export", str(run.path), "--out", str(tmp_path)]) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    network = load_model(tmp_path)
    for nodes, edges in ((5, 7), (300, 1000)):
        x, edge_index = torch.randn(nodes, 32), torch.randint(nodes, (2, edges))
        with torch.no_grad():
            torch.testing.assert_close(program(x, edge_index), network(x, edge_index))


def test_overrides_reach_the_model_in_every_form(fit, tmp_path):
    more = [
        "--model.strong",
        "graphsage",
        "--set.model.init_args.lr=5e-3",
        "--seed_everything",
        "7",
    ]
    assert fit(*more, "--trainer.max_epochs", "2") == 0
    run = only(tmp_path)
    assert run.path.parent.name == "mowst_graphsage_mixed-csbm"
    config = run.read_config()
    assert config["model"]["init_args"]["lr"] == 0.005
    assert config["seed_everything"] == 7
    assert run.read_report()["epochs"] == 2


def test_a_trial_run_says_that_its_numbers_mean_nothing(fit, tmp_path):
    assert fit("--trainer.fast_dev_run", "true") == 0
    run = only(tmp_path)
    assert run.read_report()["status"] == "trial"
    assert "numbers mean nothing" in (run.path / "report.md").read_text()
    assert not run.checkpoints.exists()


# -- stopped runs ---------------------------------------------------------------------------------


def stop_in_epoch(monkeypatch, epoch: int) -> None:
    step = TurnModule.training_step

    def training_step(self, batch, batch_idx):
        if self.current_epoch == epoch:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TurnModule, "training_step", training_step)


def test_interrupted_run_is_usable_and_continues_exactly(run, fit, tmp_path, monkeypatch, capsys):
    stop_in_epoch(monkeypatch, 14)
    assert fit("--checkpoint-seconds", "0") == 130
    monkeypatch.undo()
    stopped = only(tmp_path)
    said = error(capsys)
    assert f"moeapps fit --resume {stopped.path}" in said
    assert stopped.read_report()["status"] == "partial"
    assert "partial" in (stopped.path / "report.html").read_text()
    assert (stopped.figures / "curves_loss.png").exists()
    assert len(set(stopped.read_metrics()["step"])) == 14
    assert main(["test", "--ckpt", str(stopped.best)]) == 0

    assert main(["fit", "--resume", str(stopped.path)]) == 0
    assert stopped.read_report()["status"] == "complete"
    assert "partial" not in (stopped.path / "report.md").read_text()
    assert_same_run(run, stopped)


def test_run_stopped_before_its_first_checkpoint_starts_again(
    run, fit, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("moeapps.training.keeper.FIRST_SECONDS", 1000.0)
    stop_in_epoch(monkeypatch, 3)
    assert fit() == 130
    monkeypatch.undo()
    stopped = only(tmp_path)
    assert not stopped.last.exists()
    assert main(["fit", "--resume", str(stopped.path)]) == 0
    assert "from the start" in error(capsys)
    assert_same_run(run, stopped)


def test_killed_run_continues_exactly(run, config, tmp_path):
    command = [sys.executable, "-m", "moeapps", "fit", "--config", str(config)]
    process = subprocess.Popen(
        [*command, "--runs", str(tmp_path), "--checkpoint-seconds", "0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/*/*/checkpoints/last.ckpt")):
            assert process.poll() is None, "it ended without a checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    killed = only(tmp_path)
    assert killed.read_report()["status"] == "partial"
    assert main(["fit", "--resume", str(killed.path)]) == 0
    assert_same_run(run, killed)


def test_resuming_refuses_what_would_change_the_run(run, capsys):
    assert main(["fit", "--resume", str(run.path), "--model.lr", "0.1"]) == 2
    assert "--model.lr would change" in error(capsys)


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--model.hiden_channels", "8"], "Did you mean model.init_args.hidden_channels"),
        (["--model", "MowstClasifier"], "Did you mean MowstClassifier"),
        (["--model", "os.system"], "may not use"),
        (
            ["--model.hidden_channels", "many"],
            "hidden_channels=many does not fit. Expected int.",
        ),
        (["--trainer.accelerator", "tpu"], "do not fit this machine"),
        (["--model.strong", "gnc"], "or 'gcn'"),
        (["--data.dataset", "corra"], "Did you mean 'cora'"),
        (["--trainer.max_epoch", "3"], "Did you mean trainer.max_epochs"),
    ],
)
def test_mistakes_are_one_message_and_leave_no_folder(fit, tmp_path, capsys, override, message):
    assert fit(*override) == 2
    said = error(capsys)
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*/*/*"))


def test_missing_data_names_folder_and_leaves_nothing(fit, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MOEAPPS_OFFLINE", "1")
    data = tmp_path / "data"
    override = ["--data.dataset", "cora", "--data.root", str(data), "--data.dataset_args", "null"]
    assert fit(*override) == 2
    said = error(capsys)
    assert f"not found in {data}" in said
    assert "MOEAPPS_OFFLINE" in said
    assert not list(tmp_path.glob("graphs/*/*"))


def test_read_only_run_folder_is_refused_before_training(run, tmp_path, monkeypatch, capsys):
    write = Path.write_bytes

    def refuse(self, content):
        if self.name == ".write_test":
            raise PermissionError(13, "Permission denied")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert main(["fit", "--resume", str(run.path)]) == 2
    assert "Cannot write in the run folder" in error(capsys)
    assert main(["report", str(run.path)]) == 2


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_checkpoint_cut_short_is_refused(run, tmp_path, capsys, keep):
    content = run.best.read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(content[: int(keep * len(content))])
    assert main(["test", "--ckpt", str(cut)]) == 2
    assert "cut short" in error(capsys)
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    shutil.copy(cut, copy / "checkpoints" / "last.ckpt")
    assert main(["fit", "--resume", str(copy)]) == 2
    assert "cut short" in error(capsys)
    assert (copy / "metrics.csv").read_text() == run.metrics_file.read_text()


def test_foreign_checkpoint_asks_for_its_configuration(run, config, tmp_path, capsys):
    foreign = load_checkpoint(run.best)
    del foreign["moeapps_config"]
    AtomicCheckpointIO().save_checkpoint(foreign, tmp_path / "foreign.ckpt")
    assert main(["test", "--ckpt", str(tmp_path / "foreign.ckpt")]) == 2
    assert "Add --config FILE" in error(capsys)
    given = ["--ckpt", str(tmp_path / "foreign.ckpt"), "--config", str(config)]
    assert main(["test", *given]) == 0
