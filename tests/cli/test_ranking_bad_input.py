"""Bad logs on the command line: fit, diagnose and predict say what is wrong and where."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from moeapps.cli.main import main
from moeapps.training.runs import RunFolder

pa = pytest.importorskip("pyarrow", reason='needs pip install "moeapps[recsys]"')
pq = pytest.importorskip("pyarrow.parquet", reason='needs pip install "moeapps[recsys]"')

ROWS, BATCH = 65, 32


def log(**changes):
    """Columns in which users 0 to 4 have one class only."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 10, ROWS)
    columns = {
        "user": user,
        "age": rng.normal(size=ROWS),
        "click": np.where(user < 5, 0, rng.integers(0, 2, ROWS)),
        "like": rng.integers(0, 2, ROWS).astype(float),
    }
    return columns | changes


def write(name, columns):
    pq.write_table(pa.table(columns), name)


def config(norm=None, **data):
    schema = {
        "features": [
            {"kind": "categorical", "name": "user", "vocab_size": 1, "dim": 4},
            {"kind": "dense", "name": "age"},
        ],
        "group_key": "user",
    }
    files = {"train": "train.parquet", "val": "val.parquet", "batch_size": BATCH}
    network = {"num_experts": 2, "expert_dims": [4], "tower_dims": [4], "norm": norm}
    model = {"model": "mmoe", "model_args": network}
    given = {**files, "schema": schema, "tasks": ["click", "like"], **data}
    text = {
        "schema": 1,
        "model": {"class_path": "MultiTaskRanker", "init_args": model},
        "data": {"class_path": "RankingFiles", "init_args": given},
    }
    Path("config.yaml").write_text(yaml.safe_dump(text))
    return ["fit", "--config", "config.yaml", "--runs", "runs"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("val.parquet", log())


def told(capsys):
    return " ".join(capsys.readouterr().err.split())


def newest():
    return max(Path("runs").glob("recsys/*/*"))


def without(name):
    return {key: values for key, values in log().items() if key != name}


TEXT = [f"t{i}" for i in range(ROWS)]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (without("user"), ["'user'", "train.parquet"]),
        (without("like"), ["'like'", "train.parquet"]),
        (log(age=TEXT), ["'age'"]),
        (log(like=TEXT), ["'like'"]),
        (log(click=np.arange(ROWS)), ["Task 'click'", "row 2", "train split"]),
        ({name: values[:0] for name, values in log().items()}, ["train.parquet"]),
    ],
    ids=[
        "no feature",
        "no label",
        "text as number",
        "text as label",
        "labels of levels",
        "no rows",
    ],
)
def test_a_log_that_does_not_fit_is_refused_by_fit(columns, words, capsys):
    write("train.parquet", columns)
    assert main(config()) == 2
    message = told(capsys)
    assert all(word in message for word in words), message
    assert "Traceback" not in message


@pytest.mark.parametrize("keep", [0, 200])
def test_an_empty_or_truncated_file_is_refused_by_fit(keep, capsys):
    write("train.parquet", log())
    Path("train.parquet").write_bytes(Path("train.parquet").read_bytes()[:keep])
    assert main(config()) == 2
    message = told(capsys)
    assert "train.parquet" in message
    assert ("is empty" if keep == 0 else "cannot be read") in message


def test_a_batch_of_one_is_refused_with_batch_normalisation_and_trained_without(capsys):
    write("train.parquet", log())  # 65 rows: the third batch has one
    assert main(config(norm="batch", drop_last=False)) == 2
    assert "drop_last=True" in told(capsys)
    assert main(config(drop_last=False)) == 0


def test_missing_labels_no_positives_and_users_of_one_class_train_and_are_told(capsys):
    missing = np.where(np.arange(ROWS) % 3 == 0, np.nan, 0.0)
    write("train.parquet", log(like=missing))
    write("val.parquet", log(like=missing))
    with pytest.warns(UserWarning, match="'like' has no positive label among 43"):
        assert main(config()) == 0
    metrics = RunFolder.open(newest()).read_metrics()
    assert np.isnan(metrics["val/auc/like"]).all()
    for name in ("val/auc/click", "val/auc_mean", "val/gauc/click", "train/loss/like"):
        assert np.isfinite(metrics[name]).any(), name
    capsys.readouterr()
    with pytest.warns(UserWarning, match="'like' has no positive"):
        assert main(["diagnose", str(newest())]) == 0
    assert "65 validation rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "word"),
    [(log(age=TEXT), "'age'"), (log(user=TEXT), "'user'"), (without("age"), "'age'")],
    ids=["text as number", "text as id", "no feature"],
)
def test_rows_that_do_not_fit_the_run_are_refused_by_predict(columns, word, capsys):
    write("train.parquet", log())
    assert main(config()) == 0
    write("new.parquet", columns)
    capsys.readouterr()
    arguments = ["--input", "new.parquet", "--output", "out.parquet"]
    assert main(["predict", "--ckpt", str(newest()), *arguments]) == 2
    assert word in told(capsys)
    assert not Path("out.parquet").exists()


def test_ids_that_training_did_not_know_are_predicted_as_unknown():
    write("train.parquet", log())
    assert main(config()) == 0
    write("new.parquet", log(user=np.where(np.arange(ROWS) % 2, -7, 10**15), age=np.zeros(ROWS)))
    arguments = ["--input", "new.parquet", "--output", "out.parquet"]
    assert main(["predict", "--ckpt", str(newest()), *arguments]) == 0
    assert len(set(pq.read_table("out.parquet")["click"].to_pylist())) == 1
