import json

import pytest

pytest.importorskip("skimage", reason='needs pip install "moeapps[vision]"')
pytest.importorskip("sklearn", reason='needs pip install "moeapps[vision]"')

from moeapps.cli.main import main
from moeapps.cli.quickstart import Row
from moeapps.cli.quickstart_restoration import _FRAME, DRAWN, MODELS, WEATHER, reading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("quickstart")
    assert main(["quickstart", "restoration", "--fast", "--out", str(path)]) == 0
    return path


def test_report_shows_both_networks_the_input_and_pictures(folder):
    page = (folder / "report.html").read_text()
    for name in (*MODELS, "(as degraded)", *(f"{kind}, dB" for kind in WEATHER)):
        assert name in page
    assert page.count("data:image/png") == len(DRAWN)
    assert "trial run" in page
    assert "synthetic" in page  # the weather is


def test_numbers_are_kept_per_seed_and_the_input_beside_them(folder):
    part = json.loads((folder / "report.json").read_text())["parts"]["restoration"]
    assert [row["model"] for row in part["rows"]] == list(MODELS)
    (before,) = part["input"]
    assert 10 < before["psnr"] < 25
    assert before["psnr"] == pytest.approx(sum(before[f"psnr/{k}"] for k in WEATHER) / 3)
    for row in part["rows"]:
        (metrics,) = part["by"][row["model"]]
        assert row["scores"] == [metrics["test/psnr"]]


def test_networks_have_equally_many_weights():
    from moeapps import create_model

    sizes = {
        sum(p.numel() for p in create_model(model, **_FRAME, **arguments).parameters())
        for model, arguments in MODELS.values()
    }
    assert sizes == {60_471}


def said(vit, mofme, before=17.0):
    rows = [Row("Plain ViT", vit, (1.0,) * len(vit)), Row("MoFME", mofme, (2.0,) * len(mofme))]
    return reading(rows, [before] * len(vit), fast=False)


def test_reading_follows_the_numbers_both_ways():
    ahead = said((18.0, 18.0), (18.5, 18.2))
    assert "+1.35 dB against the degraded photographs" in ahead
    assert "+0.35 dB against Plain ViT" in ahead
    assert "ahead on 2 of 2 seeds, in 2.0 times" in ahead
    assert ahead.endswith("time.")
    assert "does not pay off" in said((18.0, 18.0), (17.5, 17.9))
    assert "do not agree" in said((18.0, 18.0), (18.5, 17.9))
    assert "nothing was learnt" in said((18.0,), (16.0,))
