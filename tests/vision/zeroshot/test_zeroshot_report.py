"""The page on seen and unseen classes says what the methods' own reports say."""

import numpy as np

from moeapps.training.report import markdown
from moeapps.vision import COSMO, CalibratedStacking
from moeapps.vision.zeroshot.report import zero_shot_report


def test_a_page_shows_harmonic_mean_area_and_curve_of_every_method():
    rng = np.random.default_rng(0)
    attributes, labels = rng.random((12, 6)), np.arange(360) % 12
    x = attributes[labels] @ rng.standard_normal((6, 8)) + 0.1 * rng.standard_normal((360, 8))
    seen = labels < 9
    models = {
        name: model.fit(x[seen], labels[seen], attributes, held_out=[6, 7, 8])
        for name, model in {"COSMO": COSMO(), "stacking": CalibratedStacking()}.items()
    }
    report = zero_shot_report(models, x, labels, dataset="points")
    accuracy, figures = report.sections
    for row, model in zip(accuracy.table.rows, models.values(), strict=True):
        found = model.report(x, labels)
        assert row[3:5] == (f"{found['harmonic']:.3f}", f"{found['ausuc']:.3f}")
    assert accuracy.table.rows[1][5:] == ("-", "-")  # stacking has no gate
    axis = figures.pictures[0].figure.axes[0]
    curves, dots = axis.lines[::2], axis.lines[1::2]
    assert [line.get_label() for line in curves] == ["COSMO", "stacking"]
    scores = models["COSMO"].score(x, labels)
    assert (dots[0].get_xdata()[0], dots[0].get_ydata()[0]) == (scores.seen, scores.unseen)
    assert "harmonic mean" in markdown(report)
