import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

pytest.importorskip("river", reason='needs pip install "moeapps[streams]"')

from moeapps.cli.main import main
from moeapps.cli.stream_models import NAMES, build
from moeapps.cli.stream_report import command
from moeapps.errors import ArgumentError, UnknownNameError

QUICK = ["stream", "hoeffding_tree", "--data", "sea_a", "--limit", "2000"]
SHORT = ["--set", "data.length=2000"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "run"
    code = main(
        [
            *QUICK, *SHORT, "--baselines", "arf", "naive_bayes", "--set", "arf.n_models=2",
            "--seeds", "0", "3", "--out", str(path), "--predictions",
        ]
    )  # fmt: skip
    assert code == 0
    return path


def results(path):
    with np.load(path / "results.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def test_run_folder_holds_what_the_layout_says(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml", "environment.txt", "figures", "metrics.csv", "report.html", "report.json",
        "report.md", "results.npz",
    ]  # fmt: skip
    facts = json.loads((folder / "report.json").read_text())
    assert facts["status"] == "complete"
    assert facts["seeds"] == [0, 3]
    assert set(facts["metrics"]) == {"hoeffding_tree", "arf", "naive_bayes"}
    assert all(0.6 < a < 0.93 for m in facts["metrics"].values() for a in m["accuracy"])
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == "model,seed,instance,accuracy,kappa_m,kappa_temporal,living"
    assert len(lines) == 1 + 3 * 2 * 2


def test_report_shows_models_changes_and_figures(folder):
    page = (folder / "report.html").read_text()
    for part in ("hoeffding_tree", "arf", "naive_bayes", "synthetic", "2 seeds", "2,000 instances"):
        assert part in page
    assert page.count("data:image/png") == 2  # accuracy and recovery; no model here has experts
    assert "partial" not in page


def test_report_command_draws_the_same_again(folder):
    before = {path.name: path.read_bytes() for path in folder.glob("report.*")}
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in folder.glob("report.*")} == before


def test_command_in_the_report_is_the_command_that_was_given(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert command(config) == (
        "moeapps stream hoeffding_tree --data sea_a --baselines arf naive_bayes --limit 2000 "
        "--seeds 0 3 --set data.length=2000 --set arf.n_models=2 --predictions"
    )


def test_predictions_are_those_of_the_python_interface(folder):
    from moeapps import streams
    from moeapps.streams.hoeffding_tree import HoeffdingTree

    stream = streams.load("sea_a", limit=2000, length=2000, seed=3)
    expected = HoeffdingTree().prequential(stream.X, stream.y)
    assert np.array_equal(results(folder)["0/3/predictions"], expected)


def start(path, *more):
    """The command in a process of its own that saves after every window."""
    words = ["-m", "moeapps", *RESUMED, "--out", str(path), "--checkpoint-seconds", "0", *more]
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


RESUMED = [
    "stream", "hoeffding_tree", "--data", "rbf_f", "--limit", "1500", "--window", "100", "--seeds",
    "0", "1", "--baselines", "arf", "--set", "arf.n_models=2", "--delay", "30", "--predictions",
]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    assert main([*RESUMED, "--out", str(path)]) == 0
    return results(path)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        if not name.endswith("/seconds"):
            assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f"), name


def wait_for(process, path):
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_killed_run_goes_on_with_the_same_predictions(tmp_path, uninterrupted):
    path = tmp_path / "run"
    process = start(path)
    wait_for(process, path / "checkpoints/seed_1/evaluation.npz")  # seed 0 is complete by then
    process.kill()
    process.communicate()
    assert not (path / "report.html").exists()
    assert main(["stream", "--resume", str(path)]) == 0
    assert_same(results(path), uninterrupted)
    assert not (path / "checkpoints").exists()
    assert "partial" not in (path / "report.html").read_text()


def test_ctrl_c_leaves_a_usable_folder_and_says_how_to_go_on(tmp_path, uninterrupted):
    path = tmp_path / "run"
    process = start(path)
    wait_for(process, path / "checkpoints/seed_0/evaluation.npz")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"moeapps stream --resume {path}" in said
    assert "Traceback" not in said
    page = (path / "report.html").read_text()
    assert "This run is partial" in page
    assert page.count("data:image/png") >= 1
    assert main(["report", str(path)]) == 0
    assert main(["stream", "--resume", str(path)]) == 0
    assert_same(results(path), uninterrupted)


def test_resuming_a_complete_run_only_writes_its_report(folder):
    before = results(folder)
    assert main(["stream", "--resume", str(folder)]) == 0
    assert_same(results(folder), before)


def test_own_csv_file(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    rows = [f"{i % 9},{'ab'[i % 2]},{'yn'[i % 2]}" for i in range(400)]
    path.write_text("number,letter,label\n" + "\n".join(rows))
    words = ["stream", "hoeffding_tree", "--data", str(path), "--window", "100"]
    assert main([*words, "--target", "label", "--out", str(tmp_path / "run")]) == 0
    facts = json.loads((tmp_path / "run/report.json").read_text())
    assert facts["metrics"]["hoeffding_tree"]["accuracy"][0] > 0.9
    assert not facts["synthetic"]
    assert main([*words, "--out", str(tmp_path / "none")]) == 2
    assert "--target COLUMN" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stream"], "needs MODEL and --data"),
        (["stream", "driftmoo", "--data", "led_a"], "Did you mean 'driftmoe'"),
        (["stream", "arf", "--data", "led-b"], "Unknown data set 'led-b'. Did you mean"),
        (["stream", "river:ARFClasifier", "--data", "led"], "Did you mean 'ARFClassifier'"),
        ([*QUICK, "--set", "grace=5"], "Did you mean 'grace_period'"),
        ([*QUICK, "--set", "grace_period"], "has no value"),
        ([*QUICK, "--set", "arf.n_models=5"], "'arf' does not take part"),
        ([*QUICK, "--set", "data.lenght=5"], "does not take lenght"),
        ([*QUICK, "--delay", "-1"], "delay=-1"),
        (["stream", "--resume", "nowhere"], "is not a run folder"),
        ([*QUICK, "--resume", "nowhere"], "without MODEL"),
    ],
)
def test_mistakes_are_one_message_and_leave_no_folder(
    words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_not_written_over(folder, capsys):
    assert main([*QUICK, "--out", str(folder)]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds_and_takes_its_seed(name):
    model = build(name, seed=7)
    assert hasattr(model, "learn_one")
    assert getattr(model, "seed", 7) == 7


def test_river_classifiers_go_by_their_class_name():
    from river.linear_model import LogisticRegression

    assert isinstance(build("river:LogisticRegression", seed=0), LogisticRegression)
    with pytest.raises(ArgumentError, match="cannot be made"):
        build("river:OneVsRestClassifier", seed=0)  # needs another classifier
    with pytest.raises(UnknownNameError, match="setting of arf"):
        build("arf", seed=0, settings={"n_trees": 3})
