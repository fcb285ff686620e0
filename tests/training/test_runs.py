import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from moeapps.errors import RunFolderError
from moeapps.training.metrics_log import MetricsLog
from moeapps.training.runs import RunFolder, environment_text, read_metrics


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_runs_of_one_second_get_two_folders(tmp_path):
    first, second = (RunFolder.create(tmp_path, "graphs", "gcn_cora") for _ in range(2))
    assert first.path != second.path
    assert first.path.parent == second.path.parent == tmp_path / "graphs" / "gcn_cora"


def test_a_root_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunFolderError, match="--runs DIR"):
        RunFolder.create(tmp_path / "runs", "graphs", "gcn_cora")


def test_a_read_only_root_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    # root may write there; nobody makes a folder in sysfs
    root = Path("/sys") if os.geteuid() == 0 else tmp_path
    with pytest.raises(RunFolderError, match="may write"):
        RunFolder.create(root, "graphs", "gcn_cora")


def test_refused_write_names_the_folder(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path, "graphs", "gcn_cora")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(RunFolderError, match=str(run.path)):
        run.check_writable()


def test_opening_something_else_offers_recent_runs(tmp_path):
    run = RunFolder.create(tmp_path, "graphs", "gcn_cora")
    run.write_config({"schema": 1})
    with pytest.raises(RunFolderError, match=r"does not exist.*Recent runs.*gcn_cora"):
        RunFolder.open(run.path.parent / "nothing")
    with pytest.raises(RunFolderError, match=r"has no config\.yaml"):
        RunFolder.open(tmp_path)
    assert RunFolder.open(run.path).read_config() == {"schema": 1}


def test_report_and_results_come_back(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_report() == {}
    assert run.read_results() == {}
    run.write_report({"status": "complete", "metrics": {"test/acc": 0.5}})
    run.write_results({"c": np.arange(3.0), "y": np.array([1, 2, 3])})
    assert run.read_report()["metrics"] == {"test/acc": 0.5}
    np.testing.assert_array_equal(run.read_results()["y"], [1, 2, 3])


def test_damaged_files_are_named(tmp_path):
    run = RunFolder(tmp_path)
    run.write_results({"c": np.zeros(1000)})
    run.results_file.write_bytes(run.results_file.read_bytes()[:100])
    run.report_file.write_text("{")
    run.config_file.write_text("a: [")
    with pytest.raises(RunFolderError, match=r"results\.npz is damaged"):
        run.read_results()
    with pytest.raises(RunFolderError, match=r"report\.json cannot be read"):
        run.read_report()
    with pytest.raises(RunFolderError, match=r"config\.yaml cannot be read"):
        run.read_config()


def test_an_array_of_objects_is_not_loaded(tmp_path):
    run = RunFolder(tmp_path)
    np.savez(run.results_file, evil=np.array([json], dtype=object).astype(str).astype(object))
    with pytest.raises(RunFolderError, match="damaged"):
        run.read_results()


def test_environment_names_versions():
    text = environment_text()
    assert "python 3." in text
    assert "\ntorch 2" in text


def test_values_of_one_step_share_a_row(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    log.log_metrics({"val/acc": 0.5, "epoch": 0}, step=3)
    log.log_metrics({"train/loss": 2.0, "epoch": 0}, step=3)
    log.log_metrics({"train/loss": 1.0, "epoch": 1}, step=4)
    log.finalize("success")
    found = rows(log.path)
    assert [row["step"] for row in found] == ["3", "4"]
    assert found[0] == {"step": "3", "val/acc": "0.5", "epoch": "0", "train/loss": "2"}
    assert found[1]["val/acc"] == ""


def test_a_new_metric_keeps_the_rows_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.training.metrics_log._FLUSH_SECONDS", -1.0)
    log = MetricsLog(tmp_path / "metrics.csv")
    for step in range(3):
        log.log_metrics({"a": step / 3}, step=step)
    log.log_metrics({"b": 1.5}, step=3)
    log.finalize("success")
    columns = read_metrics(log.path)
    np.testing.assert_array_equal(columns["a"][:3], [0, 1 / 3, 2 / 3])
    assert columns["b"][3] == 1.5
    assert np.isnan(columns["b"][:3]).all()


def test_resuming_cuts_back_to_the_checkpoint_and_repeats_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.training.metrics_log._FLUSH_SECONDS", -1.0)

    def run(log, steps):
        for step in steps:
            log.log_metrics({"loss": 1 / (step + 1)}, step=step)
            if step >= 4:
                log.log_metrics({"late": step / 7}, step=step)

    whole = MetricsLog(tmp_path / "whole.csv")
    run(whole, range(8))
    whole.finalize("success")

    killed = MetricsLog(tmp_path / "killed.csv")
    run(killed, range(3))
    state = killed.state_dict()
    run(killed, range(3, 6))  # these rows reach the disk, then the process dies

    resumed = MetricsLog(tmp_path / "killed.csv")
    resumed.load_state_dict(state)
    run(resumed, range(3, 8))
    resumed.finalize("success")
    assert rows(whole.path) == rows(resumed.path)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n0,0.5\n1")
    np.testing.assert_array_equal(read_metrics(path)["step"], [0])
