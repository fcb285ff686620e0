"""Figures and tables of counting, from what a run folder holds."""

import numpy as np
import pytest
import torch

from moeapps.vision import figures as vision_figures
from moeapps.vision import sections as vision_sections
from moeapps.vision.counting import figures, sections
from moeapps.vision.counting.counted import Counted, bucket_of, counts_of, examples_of
from moeapps.vision.counting.hmode import HMoDE, SingleDensityCounter

FRAME = {"backbone": "plain", "backbone_args": {"widths": [4, 4, 4], "depth": 1},
         "strides": (2, 4, 8), "decoder_width": 4}  # fmt: skip


def counted(single=False, height=40, width=56):
    torch.manual_seed(0)
    gates = {"gate_widths": [4], "second_widths": [4], "attention_widths": [4]}
    model = (SingleDensityCounter(**FRAME) if single else HMoDE(**FRAME, **gates)).eval()
    found = Counted({1, 3})
    for index, count in enumerate((120.0, 0.0, 700.0, 30.0)):
        image = torch.rand(1, 3, height, width)
        with torch.no_grad():
            density = model(image)
        target = torch.full((1, 1, height, width), count / (height * width))
        batch = {"image": image, "density": target, "count": torch.tensor([count])}
        found.add(batch | {"index": torch.tensor([index])}, density, model)
    return found


def test_buckets_are_those_of_the_literature():
    assert [bucket_of(count) for count in (0, 1, 100, 101, 500, 501, 10_000)] == [
        0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip


def test_counts_and_maps_of_the_shown_images_survive_as_plain_arrays():
    arrays = counted().arrays()
    true, predicted = counts_of(arrays)
    assert true.tolist() == [120, 0, 700, 30]
    assert len(predicted) == 4
    shown = examples_of(arrays)
    assert [int(example["index"]) for example in shown] == [1, 3]  # from few to many
    for example in shown:
        assert example["image"].dtype == np.uint8
        assert example["density"].shape == example["target"].shape == (1, 40, 56)
        assert example["experts"].shape == (3, 20, 28)
        np.testing.assert_allclose(example["weights"].sum(0), 1, rtol=1e-5)
    assert shown[1]["density"].sum() == pytest.approx(predicted[3], rel=1e-5)
    assert all(value.dtype != object for value in arrays.values())


def test_maps_of_large_images_are_made_smaller_and_keep_their_count():
    found = counted(single=True, height=300, width=601)
    arrays = found.arrays()
    shown = examples_of(arrays)[1]
    assert max(shown["image"].shape) <= 256
    assert shown["target"].sum() == pytest.approx(30, rel=1e-4)
    assert shown["density"].sum() == pytest.approx(arrays["counting/predicted"][3], rel=1e-4)


def test_the_report_draws_what_there_is():
    arrays = counted().arrays()
    curve = {"epoch": np.arange(2), "val/mae": np.ones(2), "val/rmse": np.ones(2)}
    drawn = figures.figures(arrays, curve)
    assert set(drawn) == set(figures.CAPTIONS)
    titles = [axis.get_title() for axis in drawn["densities"].axes]
    assert titles[0] == "image 1"
    assert "true: 0.0" in titles
    assert "true: 30.0" in titles
    assert len(drawn["experts"].axes) == 2 * 4
    assert len(drawn["gates"].axes) == 2 * 5 + 1  # attention, and the scale
    for figure in drawn.values():
        figure.draw_without_rendering()


def test_a_single_head_has_neither_experts_nor_gates_to_show():
    drawn = figures.figures(counted(single=True).arrays(), {})
    assert set(drawn) == {"counts", "densities"}


def test_images_too_large_for_the_network_as_a_whole_show_their_density_alone():
    found = counted()
    batch = {"density": torch.zeros(1, 1, 8, 8)}
    batch |= {"image": torch.zeros(1, 3, 8, 8), "count": torch.ones(1), "index": torch.tensor([3])}
    found.add(batch, batch["density"], None)
    drawn = figures.figures(found.arrays(), {})
    assert len(drawn["densities"].axes) == 2 * 3
    assert len(drawn["experts"].axes) == 4


def test_the_table_has_each_bucket_that_occurs():
    arrays = {
        "counting/true": np.array([0.0, 10.0, 90.0, 600.0]),
        "counting/predicted": np.array([2.0, 13.0, 86.0, 500.0]),
    }
    (section,) = sections.sections(arrays)
    assert section.table.rows == (
        ("0", "1", "2.00", "2.00", "+2.00"),
        ("1-100", "2", "3.50", "3.54", "-0.50"),
        ("501 and more", "1", "100.00", "100.00", "-100.00"),
        ("all", "4", "27.25", "50.07", "-24.75"),
    )
    assert "27.25 on average" in section.text
    assert "learnt" not in section.text


def test_a_counter_no_better_than_the_mean_is_called_so():
    arrays = {"counting/true": np.array([10.0, 20.0]), "counting/predicted": np.array([15.0, 14.0])}
    assert "nothing was learnt" in sections.sections(arrays)[0].text


def test_the_domain_dispatches_runs_that_counted_and_no_others():
    arrays = counted().arrays()
    assert {"counts", "densities"} <= set(vision_figures.figures(arrays, {}))
    assert set(figures.CAPTIONS) <= set(vision_figures.CAPTIONS)
    assert [section.heading for section in vision_sections.sections(arrays)] == ["Errors by count"]
    assert figures.figures({}, {}) == {}
    assert sections.sections({}) == []


def test_images_of_nobody_are_drawn():
    figure = figures.predicted_counts(np.zeros(3), np.array([0.0, 1.0, -0.5]))
    figure.draw_without_rendering()
    assert figures.predicted_counts(np.zeros(0), np.zeros(0)).axes[0].texts
