import pytest

from moeapps.cli.quickstart import Row
from moeapps.cli.quickstart_recsys import MIXTURE, MODELS, _reading

PART = "recsys"

pytestmark = pytest.mark.filterwarnings("ignore:Task:UserWarning")


def test_report_shows_every_model_both_heat_maps_and_that_data_is_synthetic(folder):
    page = (folder / "report.html").read_text()
    for name in (*MODELS, "effective_view", "forward"):
        assert name in page
    assert page.index("synthetic") < page.index("<table>")
    assert page.count("data:image/png") == 2
    assert "synthetic data" in (folder / "report.md").read_text().splitlines()[0]


def test_numbers_are_kept_per_seed(part):
    assert [row["model"] for row in part["rows"]] == list(MODELS)
    assert part["dataset"] == "short-video"
    for name in MODELS:
        (metrics,) = part["by"][name]
        assert {"test/auc_mean", "test/gauc_mean", "test/auc/like"} <= set(metrics)
    assert 0.8 < part["oracle"][0]["auc"] < 1


def test_models_have_equally_many_weights():
    from moeapps.recsys import MultiTaskRanker, load

    tables = load("short-video", rows=10, val_rows=10, test_rows=10)
    schema, tasks = tables.schema.to_dict(), [task.to_dict() for task in tables.tasks]
    sizes = []
    for name, arguments in MODELS.values():
        ranker = MultiTaskRanker(name, model_args=arguments, schema=schema, tasks=tasks)
        embeddings = {id(p) for p in ranker.model.embedding_parameters()}
        sizes.append(sum(p.numel() for p in ranker.parameters() if id(p) not in embeddings))
    assert max(sizes) < 1.05 * min(sizes)


@pytest.mark.parametrize(("ple", "told"), [(0.75, True), (0.79, False)])
def test_reading_says_so_when_ple_is_behind_mmoe(ple, told):
    scores = {"SharedBottom": 0.76, "MMoE": 0.77, "PLE": ple, MIXTURE: 0.80}
    rows = [
        Row(name, (score, score), (2.0 if name == MIXTURE else 1.0,))
        for name, score in scores.items()
    ]
    text = _reading(rows, fast=False)
    assert "+3.0 points of AUC against MMoE, ahead on 2 of 2 seeds, in 2.0 times the time" in text
    assert ("PLE is behind MMoE" in text) is told
