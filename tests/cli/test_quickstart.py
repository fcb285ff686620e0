import pytest

pytest.importorskip("torch_geometric", reason='needs pip install "moeapps[graphs]"')

from moeapps.cli.quickstart import Part, Row, table_rows
from moeapps.cli.quickstart_graphs import MODELS, _reading

PART = "graphs"


def test_report_shows_every_model_and_says_that_data_is_synthetic(folder):
    page = (folder / "report.html").read_text()
    for name in MODELS:
        assert name in page
    assert page.index("synthetic") < page.index("<table>")
    assert "trial run" in page
    assert page.count("data:image/png") == 4
    assert "synthetic data" in (folder / "report.md").read_text().splitlines()[0]


def test_numbers_are_kept_per_seed(part):
    assert [row["model"] for row in part["rows"]] == list(MODELS)
    for row in part["rows"]:
        assert len(row["scores"]) == len(row["seconds"]) == 1
        assert 0 <= row["scores"][0] <= 1
    by_name = {row["model"]: row for row in part["rows"]}
    assert len(by_name["Mowst-GCN"]["weak_share"]) == 1
    assert by_name["GraphSAGE"]["weak_share"] == []


def test_table_gives_mean_and_spread():
    rows = [Row("a", (0.5, 0.7), (1.0, 3.0), (0.2, 0.2)), Row("b", (0.5,), (1.0,))]
    assert table_rows(Part("t", rows, "")) == [
        ("a", "60.0 ± 14.1", "2.0 ± 1.4", "20.0 ± 0.0"),
        ("b", "50.0", "1.0", "-"),
    ]


@pytest.mark.parametrize(("sage", "told"), [(0.95, True), (0.80, False)])
def test_reading_says_so_when_a_single_network_does_as_well(sage, told):
    scores = {"MLP (weak)": 0.65, "GCN (strong)": 0.82, "GraphSAGE": sage, "Mowst-GCN": 0.92}
    rows = [Row(name, (score, score), (1.0, 1.0)) for name, score in scores.items()]
    text = _reading(rows, fast=False)
    assert "+10.0 points against GCN (strong), ahead on 2 of 2 seeds" in text
    assert f"{100 * (0.92 - sage):+.1f} points against GraphSAGE" in text
    assert ("solves this task alone" in text) is told
