import numpy as np
import pytest

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision import COSMO, DAP, ESZSL, CalibratedStacking, ConfidenceGate, datasets
from moeapps.vision.zeroshot.experts import SeenExpert
from moeapps.vision.zeroshot.gate import tempered
from moeapps.vision.zeroshot.metrics import ausuc
from moeapps.vision.zeroshot.protocol import phases
from moeapps.vision.zeroshot.smoothing import Contest, Smoothing

HELD_OUT = [9, 10, 11]


@pytest.fixture(scope="module")
def images():
    """Twelve seen classes of fifteen; features are a noisy linear map of attributes."""
    rng = np.random.default_rng(0)
    attributes = (rng.random((15, 8)) > 0.5) + 0.1 * rng.random((15, 8))
    labels = np.arange(600) % 15
    x = attributes[labels] @ rng.standard_normal((8, 10)) + 0.5 * rng.standard_normal((600, 10))
    train = (np.arange(600) < 450) & (labels < 12)
    test = np.arange(600) >= 450
    return x[train], labels[train], attributes, x[test], labels[test]


@pytest.fixture(scope="module")
def fitted(images):
    x, y, attributes, *_ = images
    return COSMO().fit(x, y, attributes, held_out=HELD_OUT)


def test_adaptive_smoothing_by_hand():
    mass, total, domain = np.array([[0.2, 0.1]]), np.array([0.3]), np.array([0.25])
    # q = mass + 0.75 / 2, then times 0.25.
    assert Smoothing().mix(mass, total, domain, 2) == pytest.approx(np.array([[0.14375, 0.11875]]))
    # The sum of q is 0.3 + 0.75.
    normalised = Smoothing(normalise=True).mix(mass, total, domain, 2)
    assert normalised == pytest.approx(np.array([[0.575, 0.475]]) / 1.05 * 0.25)
    none = Smoothing("none").mix(mass, total, domain, 2)
    assert none == pytest.approx(np.array([[2 / 3, 1 / 3]]) / 4)
    const = Smoothing("const", gamma=0.6).mix(mass, total, domain, 2)
    assert const == pytest.approx(np.array([[0.6, 0.4]]) / 4)
    assert not Smoothing("hard").mix(mass, total, domain, 2).any()


def test_an_expert_without_mass_on_its_domain_says_nothing():
    found = Smoothing("none").mix(np.zeros((1, 4)), np.zeros(1), np.ones(1), 4)
    assert found == pytest.approx(np.full((1, 4), 0.25))


@pytest.mark.parametrize("how", ["adaptive", "none", "const", "hard"])
@pytest.mark.parametrize("normalise", [False, True])
def test_deciding_between_the_best_of_each_domain_is_the_whole_argmax(how, normalise):
    rng = np.random.default_rng(1)
    seen, zero_shot = rng.dirichlet(np.ones(6), 200), rng.dirichlet(np.ones(10), 200)
    is_seen = np.isin(np.arange(10), [0, 2, 3, 5, 7, 8])
    unseen = rng.random(200)
    smoothing = Smoothing(how, gamma=0.7, normalise=normalise)
    whole = np.empty((200, 10))
    whole[:, is_seen] = smoothing.mix(seen, seen.sum(1), 1 - unseen, 6)
    outside = zero_shot[:, ~is_seen]
    whole[:, ~is_seen] = smoothing.mix(outside, outside.sum(1), unseen, 4)
    decided = Contest.between(seen, zero_shot, is_seen).decide(unseen, smoothing)
    assert (decided == whole.argmax(1)).all()


def test_gate_inputs_do_not_depend_on_the_order_of_classes():
    rng = np.random.default_rng(0)
    zero_shot, seen = rng.dirichlet(np.ones(7), 5), rng.dirichlet(np.ones(9), 5)
    gate = ConfidenceGate()
    shuffled = gate.inputs(zero_shot[:, rng.permutation(7)], seen[:, rng.permutation(9)])
    assert gate.inputs(zero_shot, seen) == pytest.approx(shuffled)


def test_gate_inputs_have_one_length_for_any_number_of_classes():
    gate = ConfidenceGate(top_k=5)
    for unseen, seen in ((2, 3), (5, 5), (40, 9)):
        assert gate.inputs(np.ones((1, unseen)), np.ones((1, seen))).shape == (1, 10)


def test_temperature_divides_log_probabilities():
    p = np.array([[0.7, 0.2, 0.1]])
    assert tempered(p, 3.0) == pytest.approx(p ** (1 / 3) / (p ** (1 / 3)).sum())


def test_eszsl_solves_its_two_ridges():
    rng = np.random.default_rng(0)
    x, attributes = rng.standard_normal((60, 4)), rng.random((5, 3))
    labels = np.arange(60) % 4
    expert = ESZSL(gamma=0.2, lam=0.7).fit(x, labels, attributes)
    z = (x - x.mean(0)) / x.std(0)
    s = attributes[:4] / np.linalg.norm(attributes[:4], axis=1, keepdims=True)
    left = (z.T @ z + 0.2 * 60 * np.eye(4)) @ expert._map @ (s.T @ s + 0.7 * np.eye(3))
    assert left == pytest.approx(z.T @ np.where(labels[:, None] == np.arange(4), 1, -1) @ s)


def test_dap_is_the_product_over_attributes(images):
    x, y, attributes, test, _ = images
    expert = DAP().fit(x, y, attributes)
    binary = attributes > attributes.mean(0)
    p = np.stack([model.predict_proba(test)[:, 1] for model in expert._models], 1)
    share = binary[:12].mean(0)
    terms = np.where(binary[None], p[:, None] / share, (1 - p[:, None]) / (1 - share))
    product = terms.prod(-1)
    assert expert.predict_proba(test) == pytest.approx(product / product.sum(1, keepdims=True))


def test_unseen_classes_have_no_part_in_tuning():
    labels = np.repeat(np.arange(6), 10)  # classes 6 and 7 are unseen
    tuning, last = phases(labels, 8, [4, 5], 0.2, 0)
    assert tuning.classes.tolist() == [0, 1, 2, 3, 4, 5]
    assert tuning.seen.tolist() == [True] * 4 + [False] * 2
    assert set(labels[tuning.train]) == {0, 1, 2, 3}
    assert not set(tuning.train) & set(tuning.val)
    assert (np.bincount(labels[tuning.val]) == [2, 2, 2, 2, 10, 10]).all()
    assert last.seen.tolist() == [True] * 6 + [False] * 2
    assert len(last.train) == 60


def test_answers_are_the_argmax_of_the_mixture_and_find_both_kinds(fitted, images):
    *_, test, labels = images
    answers = fitted.predict(test)
    assert (answers == fitted.predict_proba(test).argmax(1)).all()
    scores = fitted.score(test, labels)
    assert min(scores.seen, scores.unseen) > 0.4
    assert fitted.validation["auroc"] > 0.7


def test_the_gate_helps_over_the_seen_expert_and_over_the_zero_shot_expert(fitted, images):
    x, y, attributes, test, labels = images
    alone = CalibratedStacking(gamma=0.0).fit(x, y, attributes, held_out=HELD_OUT)
    assert fitted.score(test, labels).harmonic > alone.report(test, labels)["harmonic"]
    seen_only = SeenExpert().fit(x, y).predict_proba(test).argmax(1)
    assert (seen_only[labels >= 12] != labels[labels >= 12]).all()  # harmonic mean 0


def test_the_curve_reaches_both_axes_and_passes_through_the_chosen_threshold(fitted, images):
    *_, test, labels = images
    seen, unseen = fitted.curve(test, labels)
    assert max(seen.min(), unseen.min()) <= 0.01
    scores = fitted.score(test, labels)
    distance = np.hypot(seen - scores.seen, unseen - scores.unseen).min()
    assert distance < 0.05
    assert 0.2 < ausuc(seen, unseen) < 1


@pytest.mark.parametrize("smoothing", ["none", "const", "hard"])
def test_ablations_learn_and_answer_among_all_classes(smoothing, images):
    x, y, attributes, test, labels = images
    model = COSMO(smoothing=smoothing).fit(x, y, attributes, held_out=HELD_OUT)
    report = model.report(test, labels)
    assert report["harmonic"] > 0.3
    assert set(np.unique(model.predict(test))) > {12, 13}
    if smoothing != "hard":
        assert model.predict_proba(test).sum(1) == pytest.approx(np.ones(len(test)))


def test_routes_are_valid_and_mix_the_two_domains(fitted, images):
    *_, test, labels = images
    routing = fitted.route(test).check()
    weights = routing.weights.numpy()
    assert routing.num_experts == 2
    assert weights.sum(1) == pytest.approx(np.ones(len(test)))
    assert weights[labels >= 12, 1].mean() > weights[labels < 12, 1].mean()


def test_same_seed_same_answers(fitted, images):
    x, y, attributes, test, _ = images
    again = COSMO().fit(x, y, attributes, held_out=HELD_OUT)
    assert (again.predict_proba(test) == fitted.predict_proba(test)).all()


def test_calibrated_stacking_subtracts_one_number(images):
    x, y, attributes, test, _ = images
    model = CalibratedStacking().fit(x, y, attributes, held_out=HELD_OUT)
    scores = model.expert.predict_proba(test)
    scores[:, :12] -= model.gamma
    assert (model.predict(test) == scores.argmax(1)).all()
    assert model.gamma > 0


def test_an_attribute_set_of_the_published_format(tmp_path):
    datasets.make_fixture("awa2", tmp_path, images=300)
    found = datasets.load("awa2", root=tmp_path)
    model = COSMO().fit(
        *found.part("trainval"), found.attributes, held_out=found.classes("val"), seen_share=0.3
    )
    rows = np.concatenate([found.rows["test_seen"], found.rows["test_unseen"]])
    assert model.report(found.features[rows], found.labels[rows])["harmonic"] > 0.5


def with_nan(x):
    x = x.copy()
    x[3, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y, a: (with_nan(x), y, a, HELD_OUT), "row 3 are NaN"),
        (lambda x, y, a: (x, y, np.vstack([a[:14], 0 * a[14:]]), HELD_OUT), "class 14 has no attr"),
        (lambda x, y, a: (x, y, a[:11], HELD_OUT), "attributes of 11 classes"),
        (lambda x, y, a: (x, y, a, []), "held_out names no class"),
        (lambda x, y, a: (x, y, a, [14]), "held_out names class 14"),
        (lambda x, y, a: (x, y, a, range(1, 12)), "leaves 1 classes"),
        (lambda x, y, a: (x, y, a[:12], HELD_OUT), "none is unseen"),
        (lambda x, y, a: (x[:, 0], y, a, HELD_OUT), r"expected \[N, D\]"),
        (lambda x, y, a: (x, y[:-1], a, HELD_OUT), "rows of features and labels"),
    ],
)
def test_bad_input_is_named(change, says, images):
    x, y, attributes, *_ = images
    x, y, attributes, held_out = change(x, y, attributes)
    with pytest.raises(ArgumentError, match=says):
        COSMO().fit(x, y, attributes, held_out=held_out)


def test_other_features_at_test_time_are_refused(fitted, images):
    *_, test, _ = images
    with pytest.raises(ArgumentError, match="width 9, those learned from had 10"):
        fitted.predict(test[:, :9])
    with pytest.raises(ArgumentError, match="NaN"):
        fitted.predict(with_nan(test))
    for method in (COSMO(), CalibratedStacking()):
        with pytest.raises(ArgumentError, match=f"This {type(method).__name__}.*Call fit first"):
            method.predict(test)


def test_calibrated_stacking_refuses_other_features_too(images):
    x, y, attributes, test, _ = images
    model = CalibratedStacking().fit(x, y, attributes, held_out=HELD_OUT)
    with pytest.raises(ArgumentError, match="width 9, those learned from had 10"):
        model.predict(test[:, :9])


def test_labels_of_a_test_set_must_be_classes(fitted, images):
    *_, test, labels = images
    with pytest.raises(ArgumentError, match="labels reach from 1 to 15"):
        fitted.score(test, labels + 1)
    with pytest.raises(ArgumentError, match="labels reach from -1 to 13"):
        fitted.report(test, labels - 1)
    with pytest.raises(ArgumentError, match="150 rows of features and labels"):
        fitted.score(test, labels[:-1])


def test_too_few_images_to_tune_on_are_named(images):
    x, y, attributes, *_ = images
    rows = np.concatenate([np.flatnonzero(y == c)[: 3 if c else 5] for c in range(3)])
    with pytest.raises(ArgumentError, match="1 images of seen and 3 of held-out classes are too"):
        COSMO().fit(x[rows], y[rows], attributes, held_out=[2], seen_share=0.15)


def test_a_report_asks_the_experts_once_and_says_what_the_parts_say(fitted, images, monkeypatch):
    *_, test, labels = images
    scores, curve = fitted.score(test, labels), fitted.curve(test, labels)
    calls, ask = [], fitted._ask
    monkeypatch.setattr(fitted, "_ask", lambda x: calls.append(1) or ask(x))
    report = fitted.report(test, labels)
    assert calls == [1]
    assert report["harmonic"] == scores.harmonic
    assert report["ausuc"] == ausuc(*curve)


def test_unknown_words_are_named():
    with pytest.raises(UnknownNameError, match="adaptive"):
        COSMO(smoothing="adaptiv")
    with pytest.raises(UnknownNameError, match="confidence"):
        ConfidenceGate("confidenze")
