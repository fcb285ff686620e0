import pytest

from moeapps.cli.quickstart import Row
from moeapps.cli.quickstart_vision import DRAWN, MIXTURES, MODELS, Trained, _reading

PART = "vision"

pytestmark = pytest.mark.filterwarnings("ignore:Task:UserWarning")


def test_report_shows_every_model_and_what_the_experts_do(folder):
    page = (folder / "report.html").read_text()
    for name in MODELS:
        assert name in page
    assert page.count("data:image/png") == len(DRAWN) * len(MIXTURES)
    assert "synthetic" not in page  # the digits were written by people


def test_numbers_are_kept_per_seed(part):
    assert [row["model"] for row in part["rows"]] == list(MODELS)
    for name in MODELS:
        (metrics,) = part["by"][name]
        assert {"test/balanced_accuracy", "test/accuracy/few", "test/ece"} <= set(metrics)


def test_models_have_equally_many_weights():
    from moeapps import create_model

    sizes = [
        sum(
            p.numel()
            for p in create_model(
                model, num_classes=10, class_counts=[5] * 10, in_channels=1, backbone="resnet8",
                **arguments,
            ).parameters()
        )
        for model, arguments in MODELS.values()
    ]  # fmt: skip
    assert max(sizes) < 1.05 * min(sizes)
    assert sizes[0] == pytest.approx(125_000, rel=0.02)


def rows(scores):
    """One seed; the classes with few images score as all do."""
    found = {
        name: [Trained(1.0, {"test/accuracy/few": score}, {})]
        for name, score in zip(MODELS, scores, strict=True)
    }
    return [Row(name, (score,), (1.0,)) for name, score in zip(MODELS, scores, strict=True)], found


def test_reading_follows_the_numbers_both_ways():
    ahead = _reading(*rows([0.6, 0.7, 0.8, 0.9]), fast=False)
    assert "MDCS against Balanced Softmax: +20.0 points" in ahead
    assert "No mixture beats" not in ahead
    behind = _reading(*rows([0.6, 0.9, 0.8, 0.7]), fast=False)
    assert "MDCS against Balanced Softmax: -20.0 points" in behind
    assert "ahead on 0 of 1 seeds" in behind
    assert "No mixture beats Balanced Softmax" in behind
    assert "trial run" in _reading(*rows([0.6, 0.9, 0.8, 0.7]), fast=True)
