"""A ranking run on the command line: fit, report, diagnose, predict files, export."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from moeapps.cli.main import main
from moeapps.recsys.datasets import load
from moeapps.recsys.export import random_batch
from moeapps.recsys.schema import FeatureSchema
from moeapps.training.runs import RunFolder

pa = pytest.importorskip("pyarrow", reason='needs pip install "moeapps[recsys]"')
pq = pytest.importorskip("pyarrow.parquet", reason='needs pip install "moeapps[recsys]"')

CONFIG = {
    "schema": 1,
    "seed_everything": 3,
    "model": {
        "class_path": "MultiTaskRanker",
        "init_args": {
            "model": "home", "lr": 0.003,
            "model_args": {"expert_dims": [[16], [8]], "tower_dims": [8], "rank": 4},
        },
    },
    "data": {
        "class_path": "RankingData",
        "init_args": {
            "dataset": "short-video", "batch_size": 256,
            "dataset_args": {"rows": 3000, "val_rows": 600, "test_rows": 500},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranking")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    assert main(["fit", "--config", str(config), "--runs", str(folder / "runs")]) == 0
    [path] = (folder / "runs" / "recsys" / "home_short-video").iterdir()
    return RunFolder.open(path)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The raw test rows, as a file in several blocks."""
    columns = load("short-video", rows=3000, val_rows=600, test_rows=500, seed=0).test
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    table = {name: pa.array(list(values)) for name, values in columns.items()}
    pq.write_table(pa.table(table), path, row_group_size=90)
    return path


def printed(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_one_epoch_is_the_default_and_the_best_weights_are_named(run):
    facts = run.read_report()
    assert facts["epochs"] == 1
    assert facts["best"]["monitor"] == "val/auc_mean"
    assert facts["best"]["score"] == pytest.approx(
        run.read_metrics()["val/auc_mean"][~np.isnan(run.read_metrics()["val/auc_mean"])].max()
    )


def test_report_shows_experts_latency_and_figures(run):
    text = (run.path / "report.md").read_text()
    assert "## Experts and gates" in text
    assert "## Latency" in text
    latency = run.read_results()["latency"]
    assert latency[:, 0].tolist() == [1, 16]
    assert (latency[:, 1] > 0).all()
    drawn = {path.stem for path in run.figures.iterdir()}
    assert {"gates", "activations", "gradients", "calibration", "curves_loss"} <= drawn


def test_diagnose_prints_every_level_and_draws_figures(run, tmp_path, capsys):
    assert main(["diagnose", str(run.path), "--out", str(tmp_path)]) == 0
    text = printed(capsys)
    assert "600 validation rows" in text
    assert "level_1" in text
    assert "level_2" in text
    assert {p.name for p in tmp_path.iterdir()} == {
        "gates.png", "activations.png", "gradients.png", "diagnosis.json",
    }  # fmt: skip
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert found["tasks"][0] == "effective_view"
    assert len(found["levels"]) == 2


def test_diagnose_takes_a_checkpoint_file(run, tmp_path, capsys):
    assert main(["diagnose", str(run.best), "--out", str(tmp_path)]) == 0
    assert "level_2" in printed(capsys)


def test_diagnose_names_problems_with_advice(run, tmp_path, capsys):
    from moeapps.cli.diagnose import show
    from moeapps.recsys.diagnostics import Diagnosis

    assert main(["diagnose", str(run.path), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    found["levels"][1]["dead"] = [0.5] * len(found["levels"][1]["dead"])
    show(Diagnosis.from_dict(found))
    text = printed(capsys)
    assert "level_2: collapse: 0.50 of the expert units are zero for every row" in text
    assert "collapse: Normalise the experts" in text


def test_diagnose_refuses_runs_of_other_domains(tmp_path, capsys):
    config = {
        "schema": 1,
        "model": {"class_path": "NodeClassifier", "init_args": {"network": "mlp", "epochs": 1}},
        "data": {
            "class_path": "NodeData",
            "init_args": {"dataset": "mixed-csbm", "dataset_args": {"size": "tiny"}},
        },
    }
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(config))
    runs = tmp_path / "runs"
    assert main(["fit", "--config", str(tmp_path / "graph.yaml"), "--runs", str(runs)]) == 0
    [path] = runs.glob("graphs/*/*")
    assert main(["diagnose", str(path)]) == 2
    assert "looks into ranking models" in " ".join(capsys.readouterr().err.split())


# ------------------------------------------------------------------------------------------ predict


def test_predicted_file_equals_the_predictions_of_the_test_split(run, rows, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    arguments = ["--input", str(rows), "--output", str(out)]
    assert main(["predict", "--ckpt", str(run.path), *arguments]) == 0
    assert "500 predictions" in printed(capsys)
    table = pq.read_table(out)
    assert main(["predict", "--ckpt", str(run.path), "--out", str(tmp_path / "p.npz")]) == 0
    expected = np.load(tmp_path / "p.npz")
    assert table.schema.names == list(expected.files)
    for name in expected.files:
        np.testing.assert_allclose(table[name].to_numpy(), expected[name], atol=1e-5)


def test_prediction_needs_neither_labels_nor_the_training_data(run, rows, tmp_path, monkeypatch):
    """Columns that are no features are gone, and the data set cannot be made."""
    monkeypatch.setattr("moeapps.recsys.datamodules.RankingData._load", None)
    table = pq.read_table(rows)
    keep = [n for n in table.schema.names if not n.startswith("oracle") and n not in ("like",)]
    pq.write_table(table.select(keep).slice(0, 7), tmp_path / "few.parquet")
    arguments = ["--input", str(tmp_path / "few.parquet")]
    assert main(["predict", "--ckpt", str(run.best), *arguments]) == 0
    assert pq.read_table(tmp_path / "predictions.parquet").num_rows == 7


def test_unknown_users_are_predicted_as_the_unknown_id(run, rows, tmp_path):
    table = pq.read_table(rows).slice(0, 3)
    place = table.schema.get_field_index("user")
    for name, users in (("a", [10**9] * 3), ("b", [-5, 10**12, 77777777])):
        changed = table.set_column(place, "user", pa.array(users))
        pq.write_table(changed, tmp_path / f"{name}.parquet")
        arguments = ["--input", str(tmp_path / f"{name}.parquet")]
        output = ["--output", str(tmp_path / f"out_{name}.parquet")]
        assert main(["predict", "--ckpt", str(run.path), *arguments, *output]) == 0
    one, other = (pq.read_table(tmp_path / f"out_{name}.parquet") for name in "ab")
    assert one.equals(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "none.parquet"], "none.parquet"),
        (["--input", "cut.parquet"], "cut.parquet cannot be read"),
        (["--input", "empty.parquet"], "empty.parquet is empty"),
        (["--input", "lacks.parquet"], "Unknown column 'user'"),
        (["--input", "rows.parquet", "--output", "x.csv"], "must end in .parquet"),
        (["--input", "rows.parquet", "--out", "x.csv"], "leave out --out"),
        (["--output", "x.parquet"], "--input FILE"),
    ],
)
def test_bad_files_are_refused_with_a_reason(
    run, rows, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    content = rows.read_bytes()
    Path("rows.parquet").write_bytes(content)
    Path("cut.parquet").write_bytes(content[: len(content) // 2])
    Path("empty.parquet").write_bytes(b"")
    pq.write_table(pq.read_table(rows).drop(["user"]), "lacks.parquet")
    before = set(Path().iterdir())
    assert main(["predict", "--ckpt", str(run.path), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert set(Path().iterdir()) == before


# ------------------------------------------------------------------------------------------- export


def feed(checkpoint):
    schema = FeatureSchema.from_dict(checkpoint["hyper_parameters"]["schema"])
    return [random_batch(schema, rows, seed=rows) for rows in (1, 30)]


def reference(run):
    from moeapps.recsys.serving import Predictor

    return Predictor.from_checkpoint(run.best).model


def test_torch_program_gives_named_predictions_for_any_batch(run, tmp_path):
    assert main(["export", str(run.path), "--format", "torch", "--out", str(tmp_path)]) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    model = reference(run)
    for batch in feed(torch.load(run.best, weights_only=True)):
        with torch.no_grad():
            expected, got = model.predict_proba(batch), program(batch)
        assert list(got) == model.task_names
        torch.testing.assert_close(torch.stack(list(got.values()), 1), expected)


def test_onnx_file_gives_named_probabilities_in_onnxruntime(run, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason='needs pip install "moeapps[onnx]"')
    pytest.importorskip("onnxscript", reason='needs pip install "moeapps[onnx]"')
    assert main(["export", str(run.path), "--format", "onnx", "--out", str(tmp_path)]) == 0
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    model = reference(run)
    assert [out.name for out in session.get_outputs()] == model.task_names
    for batch in feed(torch.load(run.best, weights_only=True)):
        got = session.run(None, {f"input/{name}": t.numpy() for name, t in batch.items()})
        with torch.no_grad():
            expected = model.predict_proba(batch).numpy()
        np.testing.assert_allclose(np.stack(got, 1), expected, atol=1e-5)


def test_onnx_without_its_packages_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run.path), "--format", "onnx", "--out", str(tmp_path)]) == 2
    assert "pip install onnx onnxscript onnxruntime" in " ".join(capsys.readouterr().err.split())


def test_exported_folder_rebuilds_the_network(run, tmp_path):
    import moeapps

    assert main(["export", str(run.path), "--out", str(tmp_path)]) == 0
    network, model = moeapps.load_model(tmp_path), reference(run)
    [_, batch] = feed(torch.load(run.best, weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(network.predict_proba(batch), model.predict_proba(batch))
