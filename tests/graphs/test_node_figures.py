import numpy as np

from moeapps.graphs.figures import CAPTIONS, figures

V = 60
RNG = np.random.default_rng(0)
RESULTS = {
    "label": np.where(np.arange(V) % 7 == 0, -1, 1),
    "confidence": RNG.uniform(size=V),
    "local_homophily": np.where(np.arange(V) == 3, np.nan, RNG.uniform(size=V)),
    "test_mask": np.arange(V) % 2 == 1,
    "weak_correct": RNG.uniform(size=V) > 0.5,
    "strong_correct": RNG.uniform(size=V) > 0.5,
    "mixture_correct": RNG.uniform(size=V) > 0.5,
    "turn_phase": np.array(["pretrain_strong", "weak:1"]),
    "turn_start": np.array([0, 2]),
    "turn_epochs": np.array([2, 2]),
    "turn_accepted": np.array([True, False]),
}
METRICS = {
    "epoch": np.arange(4.0),
    "phase": np.array([2.0, 2.0, 3.0, 3.0]),
    "train/loss": np.arange(4.0),
    "val/acc": np.array([0.1, 0.2, 0.3, 0.4]),
    "val/acc_strong": np.full(4, 0.2),
    "val/acc_weak": np.array([np.nan, np.nan, 0.3, 0.4]),
    "val/acc_expected": np.array([np.nan, np.nan, 0.3, 0.4]),
}


def test_every_figure_has_a_caption():
    single = {name: METRICS[name] for name in ("epoch", "val/acc", "train/loss")}
    roc = {"val/auroc": np.full(4, 0.5)}
    names = set(figures(RESULTS, METRICS | roc)) | set(figures({}, single))
    assert names == set(CAPTIONS)


def test_only_labelled_test_nodes_are_drawn():
    figure = figures(RESULTS, METRICS)["confidence_homophily"]
    points = sum(len(group.get_offsets()) for group in figure.axes[0].collections[:1])
    known = RESULTS["test_mask"] & (RESULTS["label"] >= 0) & np.isfinite(RESULTS["local_homophily"])
    assert points == known.sum()


def test_accuracy_of_a_pretrained_expert_is_not_drawn_as_the_mixture_s():
    lines = figures(RESULTS, METRICS)["curves_turns"].axes[0].lines
    mixture = next(line for line in lines if line.get_label() == "mixture")
    np.testing.assert_array_equal(mixture.get_xdata(), [2, 3])


def test_a_run_that_was_never_tested_still_has_its_curves():
    drawn = figures({}, METRICS)
    assert set(drawn) == {"curves_turns", "curves_loss"}
    names = [text.get_text() for text in drawn["curves_turns"].axes[0].texts]
    assert names == ["pretrain strong", "weak:1"]


def test_an_empty_folder_has_no_figure():
    assert figures({}, {}) == {}
