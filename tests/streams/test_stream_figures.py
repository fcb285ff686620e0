import numpy as np
import pytest

from moeapps.streams.figures import (
    MAX_POINTS,
    expert_usage,
    living_experts,
    recovery_times,
    windowed_accuracy,
)
from moeapps.training.report import png

ENDS = np.arange(1, 1_001) * 1_000


def test_many_windows_are_averaged_and_none_is_lost():
    values = np.arange(1_000) / 1_000
    (line,) = windowed_accuracy(ENDS, {"a": values}).axes[0].lines
    x, y = line.get_data()
    assert len(x) <= MAX_POINTS
    assert x[-1] == ENDS[-1]
    sizes = np.diff(np.concatenate([[0], x])) / 1_000
    assert (y * sizes).sum() / 1_000 == pytest.approx(values.mean())


def test_few_windows_are_drawn_as_they_are():
    (line,) = windowed_accuracy(ENDS[:3], {"a": np.array([0.1, 0.5, 0.2])}).axes[0].lines
    assert line.get_data()[1].tolist() == [0.1, 0.5, 0.2]


def test_true_and_seen_changes_are_marked():
    figure = windowed_accuracy(
        ENDS, {"a": np.full(1_000, 0.8), "b": np.full(1_000, 0.7)}, drifts=[250_000, 500_000],
        drift_width=5_000, detected={"b": [251_000, 502_000, 503_000]},
    )  # fmt: skip
    axis = figure.axes[0]
    marks = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in marks] == [250_000, 500_000]
    assert len(axis.patches) == 2  # the bands of a change that takes long
    seen = [line for line in axis.lines if line.get_marker() == "|"]
    assert [line.get_xdata().tolist() for line in seen] == [[251_000, 502_000, 503_000]]
    low, _ = axis.get_ylim()
    assert low < seen[0].get_ydata()[0] < 0.7
    png(figure)


def test_usage_is_a_share_per_window():
    usage = np.array([[3, 1], [0, 4], [0, 0]])
    figure = expert_usage(ENDS[:3], usage, drifts=[1_500], name="m")
    share = figure.axes[0].collections[0].get_array()
    assert share[:, :2].tolist() == [[0.75, 0.0], [0.25, 1.0]]
    assert np.isnan(np.ma.filled(share[:, 2], np.nan)).all()  # nobody answered
    png(figure)


def test_recovery_counts_the_seeds_that_were_not_back():
    times = {"a": np.array([[1_000.0, np.nan], [3_000.0, np.nan]]), "b": np.full((2, 2), 500.0)}
    axis = recovery_times([100, 200], times).axes[0]
    assert [patch.get_height() for patch in axis.patches if np.isfinite(patch.get_height())] == [
        2_000, 500, 500,
    ]  # fmt: skip
    assert [text.get_text() for text in axis.texts] == ["2"]


def test_living_experts_start_at_zero():
    axis = living_experts(ENDS[:2], {"a": np.array([3.0, 4.0])}).axes[0]
    assert axis.get_ylim()[0] == 0


@pytest.mark.parametrize(
    "figure",
    [
        windowed_accuracy(np.array([]), {}),
        living_experts(np.array([]), {}),
        expert_usage(np.array([]), np.zeros((0, 3))),
        recovery_times([], {}),
        recovery_times([5], {"a": np.array([[np.nan]])}),
        windowed_accuracy(ENDS[:1], {"a": np.array([0.5]), "b": np.array([np.nan])}),
    ],
)
def test_nothing_to_draw_is_no_error(figure):
    assert png(figure)
