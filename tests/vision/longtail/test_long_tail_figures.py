"""Figures and sections of a long-tail run: each has a caption, none fails on what is missing."""

import numpy as np
import pytest

from moeapps.vision.longtail.figures import CAPTIONS, class_figure, figures, group_figure
from moeapps.vision.sections import sections

C, K = 40, 3
RNG = np.random.default_rng(0)
RESULTS = {
    "class_counts": np.arange(C, 0, -1) ** 2,
    "class_names": np.array([f"class {j}" for j in range(C)]),
    "group_names": np.array(["many", "medium", "few"]),
    "group_sizes": np.array([20, 20, 0]),
    "group_accuracy": np.array([[0.9, 0.5, np.nan], [0.8, 0.4, np.nan], [0.7, 0.5, np.nan]]),
    "class_accuracy": RNG.uniform(size=(1 + 2, C)),
    "reliability": np.array([[np.nan, np.nan, 0.0], [0.8, 0.6, 1.0]]),
    "disagreement": np.array([[0.0, 0.3], [0.3, 0.0]]),
    "experts_used": RNG.uniform(1, 2, C),
    "engagement": np.array([[0.0, 1.0, 0.6], [1.0, 2.0, 0.7]]),
}
METRICS = {
    "epoch": np.arange(3.0),
    "train/loss": np.arange(3.0),
    "val/loss": np.arange(3.0),
    "val/balanced_accuracy": np.arange(3.0) / 3,
    "val/accuracy/few": np.full(3, np.nan),
}
SINGLE = {
    name: value[:1] if name in ("group_accuracy", "class_accuracy") else value
    for name, value in RESULTS.items()
    if name not in ("disagreement", "experts_used", "engagement")
}


def test_every_figure_has_a_caption():
    assert set(figures(RESULTS, METRICS)) == set(CAPTIONS)


def test_a_single_network_has_no_figures_of_experts():
    drawn = figures(SINGLE, METRICS)
    assert not {"disagreement", "experts_used", "engagement"} & set(drawn)
    assert figures({}, {}) == {}


def test_experts_used_is_drawn_only_where_some_are_left_out():
    everything = RESULTS | {"experts_used": np.full(C, 2.0)}
    assert "experts_used" not in figures(everything, {})


def test_empty_group_is_called_so_and_not_zero():
    figure = group_figure(RESULTS["group_accuracy"], ["many", "medium", "few"], np.array([1, 2, 0]))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("none") == 3
    assert "0" not in texts


def test_class_without_test_images_is_left_out():
    figure = class_figure(np.array([0.5, np.nan]), np.array([10, 5]))
    assert len(figure.axes[0].collections[0].get_offsets()) == 1
    figure = class_figure(np.full(2, np.nan), np.array([10, 5]))
    assert figure.axes[0].texts[0].get_text() == "no data"


def test_section_compares_mixture_and_experts_and_names_the_hardest_classes():
    groups, hardest = sections(RESULTS)
    assert [row[0] for row in groups.table.rows] == ["mixture", "expert 1", "expert 2"]
    assert groups.table.rows[0][-1] == "not defined"
    whole = RESULTS["class_accuracy"].mean(1)
    assert f"{100 * (whole[0] - whole[1:].max()):+.1f} points" in groups.text
    worst = RESULTS["class_names"][RESULTS["class_accuracy"][0].argmin()]
    assert hardest.table.rows[0][0] == worst


def test_section_says_what_doubt_finds():
    doubt = {
        "doubt_of": np.array(["failure", "tail", "foreign/mnist-lt"]),
        "doubt": np.array([[0.8, 0.6], [np.nan, np.nan], [0.9, 0.25]]),
    }
    *_, section = sections(RESULTS | doubt)
    failure, tail, foreign = section.table.rows
    assert failure == ("wrong answers", "0.800", "0.600")
    assert tail[1:] == ("not defined", "not defined")
    assert foreign == ("images of mnist-lt, none of the classes", "0.900", "0.250")


@pytest.mark.parametrize("results", [{}, {"other": np.zeros(2)}])
def test_run_without_results_has_no_section(results):
    assert sections(results) == []


def test_single_network_is_not_called_a_mixture():
    groups, _ = sections(SINGLE)
    assert [row[0] for row in groups.table.rows] == ["network"]
    assert groups.text == ""
