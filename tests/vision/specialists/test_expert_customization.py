import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.vision import ExpertCustomization, LeNet5, WriterStyle, personalise
from moeapps.vision.specialists.cost import count_macs, count_weights
from moeapps.vision.specialists.expert_customization import accuracies, gate_targets, local_loss

STYLE = WriterStyle(slant=0.9, scale=0.8, degrees=20)


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(bunch.target)[order]


@pytest.fixture(scope="module")
def lenet(digits):
    images, labels = digits
    torch.manual_seed(0)
    network = LeNet5(10, image_size=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(60):
        rows = torch.randint(700, (64,))
        loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def customised(lenet, digits):
    images, labels = digits
    torch.manual_seed(0)
    model = ExpertCustomization(copy.deepcopy(lenet), budget=0.12)
    found = personalise(
        model, STYLE(images[700:900]), labels[700:900], (images[900:1300], labels[900:1300])
    )
    return model.eval(), found


def test_the_user_gains_and_others_lose_nothing(customised, digits):
    model, found = customised
    images, labels = (part[1300:] for part in digits)
    user = accuracies(model, STYLE(images), labels)
    generic = accuracies(model, images, labels)
    assert user["mixture"] > user["global"] + 0.05
    assert generic["mixture"] > generic["global"] - 0.01
    assert user["routed"] > 3 * generic["routed"]
    assert max(user["global"], user["mixture"], user["local"]) <= user["oracle"]
    assert found.generic_after >= found.generic_before - 0.002


def test_the_global_expert_does_not_change(customised, lenet):
    model, _ = customised
    for before, after in zip(lenet.parameters(), model.global_expert.parameters(), strict=True):
        assert torch.equal(before, after)
        assert not after.requires_grad
    assert not model.train().global_expert.training
    model.eval()


def test_only_routed_images_are_computed_by_the_local_expert(customised, digits):
    model, _ = customised
    images = torch.cat([STYLE(digits[0][:30]), digits[0][:30]])
    seen = []
    handle = model.local_expert.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    with gating.record(model) as recording:
        logits = model(images)
    handle.remove()
    routing = recording.routings["ExpertCustomization"][0].check()
    chosen = routing.indices[:, 0]
    assert seen == [int(chosen.sum())]
    assert 0 < chosen.sum() < 60
    assert torch.equal(logits[chosen == 0], model.global_expert(images)[chosen == 0])
    features, _ = model.look(images)
    torch.testing.assert_close(logits[chosen == 1], model.local_expert(features)[chosen == 1])


def test_an_images_answer_does_not_depend_on_the_others(customised, digits):
    model, _ = customised
    images = STYLE(digits[0][:20])
    alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-4)


def test_features_are_the_input_of_the_last_linear_layer(lenet, digits):
    images = digits[0][:4]
    features, logits = ExpertCustomization(lenet, budget=0.12).look(images)
    torch.testing.assert_close(lenet.fc3(features), logits)
    earlier, _ = ExpertCustomization(nn.Sequential(nn.Flatten(), nn.Linear(64, 3000),
                                     nn.ReLU(), nn.Linear(3000, 5)), head="3",
                                     budget=0.2).look(images)  # fmt: skip
    assert earlier.shape == (4, 3000)


def test_a_lenet_stays_within_five_percent():
    model = ExpertCustomization(LeNet5(10))
    overhead = model.overhead(torch.rand(3, 1, 28, 28))
    assert 0.03 < overhead["weights"] <= 0.05
    assert overhead["macs"] <= 0.05


def test_counts_of_lenet_by_hand():
    network = LeNet5(10)
    conv = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25
    assert count_weights(network) == 61_706
    assert count_macs(network, torch.rand(2, 1, 28, 28)) == 2 * (
        conv + 400 * 120 + 120 * 84 + 84 * 10
    )


def test_local_loss_counts_errors_of_the_global_expert_five_times():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    found = local_loss(logits, labels, torch.tensor([True, False, False]), kappa=4.0)
    torch.testing.assert_close(found, (5 * each[0] + each[1] + each[2]) / 7)


def test_gate_targets_of_every_case():
    everything = [(g, e, o) for g in (0, 1) for e in (0, 1) for o in (0, 1)]
    right, local, generic = torch.tensor(everything, dtype=torch.bool).T
    target, counted = gate_targets(right, local, generic)
    assert target.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert counted.tolist() == [False, False, True, True, True, True, False, True]


def test_learning_on_starts_from_what_is_there(customised, digits):
    model, _ = copy.deepcopy(customised)
    images, labels = digits
    before = [p.clone() for p in model.local_expert.parameters()]
    personalise(model, STYLE(images[:40]), labels[:40], (images[900:1000], labels[900:1000]),
                steps=1, lr=1e-4)  # fmt: skip
    for old, new in zip(before, model.local_expert.parameters(), strict=True):
        assert 0 < (old - new).abs().max() < 1e-3


def test_same_seed_same_mixture(customised, lenet, digits):
    images, labels = digits
    torch.manual_seed(0)
    model = ExpertCustomization(copy.deepcopy(lenet), budget=0.12)
    personalise(
        model, STYLE(images[700:900]), labels[700:900], (images[900:1300], labels[900:1300])
    )
    assert torch.equal(model.eval()(images), customised[0](images))


def test_styles_are_one_per_user_and_change_the_images(digits):
    images = digits[0][:5]
    assert WriterStyle.draw(3) == WriterStyle.draw(3) != WriterStyle.draw(4)
    thick, thin = (WriterStyle(thickness=t)(images) for t in (0.6, -0.6))
    assert thin.sum() < images.sum() < thick.sum()
    assert WriterStyle(scale=0.5)(images).sum() < images.sum()
    upright = torch.zeros(1, 1, 8, 8)
    upright[..., 3:5] = 1
    slanted = WriterStyle(slant=0.8)(upright)
    columns = torch.arange(8.0)
    top, bottom = (
        (slanted[0, 0, row] * columns).sum() / slanted[0, 0, row].sum() for row in (1, 6)
    )
    assert abs(top - bottom) > 2


def good(digits, count=30):
    images, labels = digits
    return images[:count], labels[:count], (images[100:200], labels[100:200])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y, r: (x, y + 5, r), "labels reach from"),
        (lambda x, y, r: (x, y[:-1], r), "the user's images and labels"),
        (lambda x, y, r: (x[:3], y[:3], r), "too few"),
        (lambda x, y, r: (x, y, (r[0][:9], r[1][:9])), "9 replay images for 30"),
        (lambda x, y, r: (x * float("nan"), y, r), "NaN or infinite"),
    ],
)
def test_bad_input_of_a_user_is_named(change, says, lenet, digits):
    model = ExpertCustomization(lenet, budget=0.12)
    with pytest.raises(ArgumentError, match=says):
        personalise(model, *change(*good(digits)))


def test_networks_and_budgets_that_do_not_fit_are_refused(lenet):
    with pytest.raises(ArgumentError, match="no linear layer to take"):
        ExpertCustomization(nn.Sequential(nn.Flatten()))
    with pytest.raises(ArgumentError, match="head='fc9' is no linear layer"):
        ExpertCustomization(lenet, head="fc9")
    with pytest.raises(ArgumentError, match="budget leaves"):
        ExpertCustomization(lenet, budget=0.01)
    with pytest.raises(ArgumentError, match="image_size=7"):
        LeNet5(10, image_size=7)
    with pytest.raises(ArgumentError, match="scale=0"):
        WriterStyle(scale=0)


def test_where_the_local_expert_gives_nan_the_global_one_answers(lenet, digits):
    model = ExpertCustomization(lenet, budget=0.12).eval()
    model.score.threshold.fill_(1e-5)  # the gate sends everything to the local expert
    images = digits[0][:4]
    local = model(images)
    assert not torch.equal(local, lenet(images))
    for parameter in model.local_expert.parameters():
        parameter.data.fill_(torch.nan)
    assert torch.equal(model(images), lenet(images))
    assert model(images[:1]).shape == (1, 10)


def test_images_that_do_not_fit_the_global_expert_are_named():
    network = LeNet5(10, image_size=8)
    with pytest.raises(ArgumentError, match="9x9 pixels, this backbone takes 8x8"):
        network(torch.rand(2, 1, 9, 9))
    with pytest.raises(ArgumentError, match=r"\[2, 3, 8, 8\], expected \[B, 1, H, W\]"):
        network(torch.rand(2, 3, 8, 8))
