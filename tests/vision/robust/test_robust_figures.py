import torch

from moeapps.vision.robust.evaluation import RobustReport
from moeapps.vision.robust.figures import accuracy_under_attack
from moeapps.vision.robust.suites import ADAPTIVE, adaptive_attacks, fixed_attacks
from moeapps.vision.sections import sections


def test_bars_have_the_reports_heights():
    right = {"clean": torch.tensor([1, 1, 1, 0]).bool(), "pgd": torch.tensor([1, 0, 1, 1]).bool()}
    dense = {"clean": torch.tensor([1, 0]).bool()}
    figure = accuracy_under_attack({"a": RobustReport(right, {}), "b": RobustReport(dense, {})})
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights == [[0.75, 0.75, 0.5], [0.5, 0.5]]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["a", "b"]


def test_section_tells_what_only_the_router_hid():
    clean = torch.tensor([1, 1, 1, 0]).bool()
    pgd, forced = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    report = RobustReport(
        {"clean": clean, "pgd": pgd, "forced": forced}, {"pgd": ~clean, "forced": clean}
    )
    (section,) = sections(report.arrays())
    assert section.table.rows == report.rows
    assert report.rows[2:] == (
        ("forced", "50.0%", "75.0%"), ("worst case of each image", "25.0%", "-"),
    )  # fmt: skip
    assert "75.0% are classified correctly, 50.0% under every attack that takes" in section.text
    assert "25.0% under all" in section.text
    assert "hid 25.0 points" in section.text
    assert "the attack forced sends 75.0% of the images" in section.text


def test_a_network_without_a_router_hides_nothing():
    report = RobustReport({"clean": torch.ones(2).bool(), "soft": torch.zeros(2).bool()}, {})
    assert "routes nothing" in sections(report.arrays())[0].text


def test_the_attacks_that_follow_the_router_have_these_names():
    assert tuple(adaptive_attacks(fallback=True)) == ADAPTIVE
    assert not set(fixed_attacks()) & set(ADAPTIVE)
