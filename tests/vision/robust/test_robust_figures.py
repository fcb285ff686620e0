import torch

from moeapps.vision.robust.evaluation import RobustReport
from moeapps.vision.robust.figures import accuracy_under_attack


def test_bars_have_the_reports_heights():
    right = {"clean": torch.tensor([1, 1, 1, 0]).bool(), "pgd": torch.tensor([1, 0, 1, 1]).bool()}
    dense = {"clean": torch.tensor([1, 0]).bool()}
    figure = accuracy_under_attack({"a": RobustReport(right, {}), "b": RobustReport(dense, {})})
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights == [[0.75, 0.75, 0.5], [0.5, 0.5]]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["a", "b"]
