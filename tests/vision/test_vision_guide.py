"""The guide runs from its first block to its last."""

from pathlib import Path

import pytest

from moeapps.registry import MODELS
from moeapps.vision.robust.suites import ADAPTIVE

GUIDE = Path(__file__).parents[2] / "docs" / "vision.md"

for package in ("skimage", "sklearn", "timm", "torchvision"):
    pytest.importorskip(package, reason='needs pip install "moeapps[vision]"')


def test_every_block_of_the_guide_runs(run_guide):
    names = run_guide("vision.md")
    labels, predicted = names["labels"], names["predicted"]
    assert names["metrics"].balanced_accuracy(predicted, labels, 10) > 0.6
    assert (names["skewed"] == 0).sum() > (predicted == 0).sum()
    assert 1 <= (names["routing"].weights > 0).sum(1).float().mean() < 3
    assert len(list(Path("runs").glob("*/*/*"))) == 4
    for path in ("restored/chelsea.png", "restored/side_by_side/coffee.png", "counted/counts.csv"):
        assert Path(path).is_file(), path
    robust = names["report"]
    assert set(ADAPTIVE[:3]) < set(robust.correct)
    assert robust.worst() < robust.accuracy() > 0.3
    assert names["pool"](names["pictures"], names["classes"]).shape == (20, 5)
    assert names["found"].generic_after >= names["found"].generic_before - 0.002
    assert names["models"]["COSMO"].score(names["features"], names["labels_all"]).harmonic > 0.6
    assert "AUSUC" in Path("zero_shot/report.md").read_text()


def test_the_guide_names_all_methods_for_long_tails():
    methods = [name for name, entry in MODELS.items() if "long tail" in entry.tags]
    assert len(methods) == 10
    for name in methods:
        assert f"`{name}`" in GUIDE.read_text(), name
