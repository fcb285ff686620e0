import numpy as np
import pytest
from matplotlib.figure import Figure

from moeapps import plots
from moeapps.errors import ArgumentError
from moeapps.training.report import png

RNG = np.random.default_rng(0)
C = RNG.uniform(size=200)
EPOCHS = np.arange(20)
TURNS = [("pretrain_strong", 0, 10, True), ("weak:1", 10, 10, False)]

FIGURES = {
    "confidence_against": lambda c: plots.confidence_against(
        c, 1 - c, xlabel="local homophily", groups=np.arange(len(c)) % 2, group_names=("S", "F")
    ),
    "confidence_histogram": plots.confidence_histogram,
    "accuracy_by_confidence": lambda c: plots.accuracy_by_confidence(
        c, {"weak": c > 0.5, "strong": c < 0.8}
    ),
    "gate_weights_by_class": lambda c: plots.gate_weights_by_class(
        np.stack([c, 1 - c], 1), np.arange(len(c)) % 3
    ),
    "disagreement": lambda c: plots.disagreement(np.abs(c[:3, None] - c[None, :3])),
    "reliability": lambda c: plots.reliability(np.stack([c, c**2, 1 / (len(c) + 0 * c)], 1)),
    "expert_utilisation": lambda c: plots.expert_utilisation(c.reshape(2, -1)[:, :8]),
    "training_curves": lambda c: plots.training_curves(
        np.arange(len(c)), {"train": c, "val": 1 - c}, ylabel="loss"
    ),
    "curves_by_turn": lambda c: plots.curves_by_turn(
        np.arange(len(c)), {"val": c}, [("weak:1", 0, len(c), True)], ylabel="accuracy"
    ),
}


def test_every_figure_of_the_package_is_tested_here():
    assert set(FIGURES) == set(plots.__all__)


@pytest.mark.parametrize("name", FIGURES)
def test_figure_draws_with_both_axes_named(name):
    figure = FIGURES[name](C)
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_xlabel()
    assert figure.axes[0].get_ylabel()
    assert png(figure, dpi=40).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"expert_utilisation"}))
def test_no_rows_is_said_instead_of_failing(name):
    figure = FIGURES[name](np.zeros(0))
    assert [text.get_text() for text in figure.axes[0].texts][-1] == "no data"


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"expert_utilisation"}))
def test_one_row_is_enough(name):
    assert png(FIGURES[name](np.array([0.3])), dpi=40)


def test_figures_leave_pyplot_alone():
    import matplotlib.pyplot as plt

    plots.confidence_histogram(C)
    assert plt.get_fignums() == []


def test_rows_without_the_property_are_left_out():
    x = np.where(C > 0.5, np.nan, C)
    figure = plots.confidence_against(C, x, xlabel="local homophily")
    assert len(figure.axes[0].collections[0].get_offsets()) == (C <= 0.5).sum()


def test_same_input_gives_the_same_picture():
    first, second = (FIGURES["confidence_against"](C) for _ in range(2))
    assert png(first, dpi=40) == png(second, dpi=40)


def test_bins_by_confidence_hold_equal_numbers_of_rows():
    right = C > 0.5
    figure = plots.accuracy_by_confidence(C, {"weak": right}, bins=4)
    expected = [right[part].mean() for part in np.array_split(np.argsort(C, kind="stable"), 4)]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), expected)


def test_histogram_says_the_share_above_the_threshold():
    figure = plots.confidence_histogram(np.array([0.1, 0.2, 0.3, 0.9]), unit="nodes")
    assert figure.axes[0].get_title(loc="left").startswith("25% of nodes")


def test_values_logged_at_different_times_share_a_plot():
    train, val = np.full(20, np.nan), np.full(20, np.nan)
    train[::2], val[1::2] = 1.0, 2.0
    figure = plots.training_curves(EPOCHS, {"train": train, "val": val}, ylabel="loss")
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [10, 10]


def test_turns_are_named_and_undone_ones_marked():
    figure = plots.curves_by_turn(EPOCHS, {"val": EPOCHS / 20}, TURNS, ylabel="accuracy")
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names == ["pretrain strong", "weak:1 (undone)"]


def test_lengths_that_differ_are_refused():
    with pytest.raises(ArgumentError, match="one number per row"):
        plots.confidence_against(C, C[:-1], xlabel="x")
    with pytest.raises(ArgumentError, match="weak"):
        plots.accuracy_by_confidence(C, {"weak": C[:-1] > 0})
    with pytest.raises(ArgumentError, match="do not match"):
        plots.gate_weights_by_class(C, np.zeros(200))
