import json

import pytest

pytest.importorskip("scipy", reason='needs pip install "moeapps[vision]"')

from moeapps.cli.main import main
from moeapps.cli.quickstart import EXTRAS, PARTS, Row, _lacks
from moeapps.cli.quickstart_counting import DRAWN, MODELS, reading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("quickstart")
    assert main(["quickstart", "counting", "--fast", "--out", str(path)]) == 0
    return path


def test_report_shows_both_counters_the_guess_and_pictures(folder):
    page = (folder / "report.html").read_text()
    for name in (*MODELS, "(mean count)", "GAME(1)", "synthetic"):
        assert name in page
    assert page.count("data:image/png") == len(DRAWN)


def test_numbers_are_kept_per_seed_and_the_guess_beside_them(folder):
    part = json.loads((folder / "report.json").read_text())["parts"]["counting"]
    assert [row["model"] for row in part["rows"]] == list(MODELS)
    (guess,) = part["guess"]
    assert 0 < guess["mae"] <= guess["rmse"]
    for row in part["rows"]:
        (metrics,) = part["by"][row["model"]]
        assert row["scores"] == [metrics["test/mae"]]
        assert metrics["test/mae"] <= metrics["test/game/1"]


def test_counters_have_about_as_many_weights():
    from moeapps import create_model

    single, hmode = (
        sum(p.numel() for p in create_model(model, **arguments).parameters())
        for model, arguments in MODELS.values()
    )
    assert hmode <= single <= 1.01 * hmode


def said(single, hmode, guess=20.0):
    rows = [Row("Single density", single, (1.0,) * len(single))]
    rows.append(Row("HMoDE", hmode, (1.5,) * len(hmode)))
    return reading(rows, [guess] * len(single), fast=False)


def test_reading_follows_the_numbers_both_ways():
    ahead = said((10.0, 10.0), (9.0, 8.0))
    assert "0.85 times the error of Single density" in ahead
    assert "ahead on 2 of 2 seeds, in 1.5 times the time; 0.42 times that of always" in ahead
    assert "does not pay off" in said((10.0, 10.0), (11.0, 10.5))
    assert "do not agree" in said((10.0, 10.0), (11.0, 9.5))
    assert "no better than a guess" in said((10.0,), (25.0,))


def test_what_is_missing_is_named_with_an_extra_that_exists():
    assert set(EXTRAS) <= set(PARTS)
    assert 'pip install "moeapps[vision]"' in str(_lacks("restoration", "scikit-image"))
    assert 'pip install "moeapps[streams]"' in str(_lacks("streams", "river"))
