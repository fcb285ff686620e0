"""The mean over models: by hand, trained independently, and with models of timm."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moeapps.errors import ArgumentError, DataNotFoundError
from moeapps.vision.longtail.backdoor import BackdoorAdjustment

COUNTS = [6, 3, 1]


class Fixed(nn.Module):
    """Says the same of every image."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def two_models():
    return [Fixed([0.5, 0.25, 0.25]), Fixed([0.1, 0.8, 0.1])]


IMAGES = torch.zeros(2, 3, 4, 4)


def test_probabilities_are_averaged_by_hand():
    model = BackdoorAdjustment(3, COUNTS, models=two_models())
    expected = torch.tensor([0.3, 0.525, 0.175]).expand(2, 3)
    torch.testing.assert_close(model(IMAGES).softmax(-1), expected)


def test_prior_is_corrected_when_fine_tuning_did_not():
    model = BackdoorAdjustment(3, COUNTS, models=two_models(), lam=0.0)
    odds = torch.tensor([0.3 / 0.6, 0.525 / 0.3, 0.175 / 0.1])
    torch.testing.assert_close(model(IMAGES)[0].softmax(-1), odds / odds.sum())


def test_a_known_test_prior_multiplies():
    q = [0.2, 0.2, 0.6]
    model = BackdoorAdjustment(3, COUNTS, models=two_models(), test_prior=q)
    odds = torch.tensor([0.3, 0.525, 0.175]) * torch.tensor(q)
    torch.testing.assert_close(model(IMAGES)[0].softmax(-1), odds / odds.sum())


def test_every_model_learns_as_if_it_were_alone():
    torch.manual_seed(0)
    images, target = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    models = [nn.Sequential(nn.Flatten(), nn.Linear(12, 3)) for _ in range(2)]
    both = BackdoorAdjustment(3, COUNTS, models=models)
    _, aux = both(images, return_aux=True)
    gradient = torch.autograd.grad(both.loss(aux, target, epoch=1), models[1][1].weight)[0]
    alone = F.cross_entropy(models[1](images) + torch.tensor([0.6, 0.3, 0.1]).log(), target)
    torch.testing.assert_close(gradient, torch.autograd.grad(alone, models[1][1].weight)[0])


def test_a_model_with_nan_is_left_out():
    model = BackdoorAdjustment(3, COUNTS, models=two_models())
    with torch.no_grad():
        model.backbone.bodies[0].model.logits.fill_(math.nan)
    torch.testing.assert_close(model(IMAGES)[0].softmax(-1), torch.tensor([0.1, 0.8, 0.1]))


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="models is empty"):
        BackdoorAdjustment(3, COUNTS, models=[])
    with pytest.raises(ArgumentError, match="test_prior needs class_counts"):
        BackdoorAdjustment(3, models=two_models(), test_prior=[0.2, 0.2, 0.6])
    with pytest.raises(ArgumentError, match="class 1 has no training image"):
        BackdoorAdjustment(3, [5, 0, 1], models=two_models())


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason='needs pip install "moeapps[vision]"')


def test_weights_come_from_a_local_file_without_their_classifier(timm, tmp_path):
    pretrained = timm.create_model("test_efficientnet", num_classes=10)
    torch.save(pretrained.state_dict(), tmp_path / "weights.pth")
    member = {"name": "test_efficientnet", "weights": str(tmp_path / "weights.pth")}
    model = BackdoorAdjustment(3, COUNTS, models=[member, "test_resnet"])
    loaded = model.backbone.bodies[0].model
    assert torch.equal(loaded.conv_stem.weight, pretrained.conv_stem.weight)
    assert loaded.classifier.out_features == 3
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_models_of_timm_get_images_in_their_own_units(timm):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    model = BackdoorAdjustment(3, COUNTS, models=["test_resnet"], normalised_by=(mean, std)).eval()
    pixels = torch.rand(2, 3, 32, 32)

    def normalise(mean, std):
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    member = model.backbone.bodies[0].model
    own = normalise(member.pretrained_cfg["mean"], member.pretrained_cfg["std"])
    got = model(normalise(mean, std), return_aux=True)[1]["logits"][:, 0]
    torch.testing.assert_close(got, member(own), rtol=1e-4, atol=1e-5)


def test_nothing_is_downloaded_and_unknown_names_are_told(timm):
    with pytest.raises(DataNotFoundError, match=r"No weights of test_resnet at nowhere\.pth"):
        BackdoorAdjustment(3, models=[{"name": "test_resnet", "weights": "nowhere.pth"}])
    with pytest.raises(ArgumentError, match="would download"):
        BackdoorAdjustment(3, models=[{"name": "test_resnet", "pretrained": True}])
    with pytest.raises(ArgumentError, match="no model 'resnet999'"):
        BackdoorAdjustment(3, models=["resnet999"])
    with pytest.raises(ArgumentError, match="1 channels"):
        BackdoorAdjustment(3, models=["test_resnet"], normalised_by=([0.5], [0.5]))


def test_a_model_with_another_number_of_outputs_is_named():
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    model = BackdoorAdjustment(4, [3, 2, 1, 1], models=[wide])
    with pytest.raises(ArgumentError, match=r"Sequential gave \[2, 5\] for 2 images.*\[B, 4\]"):
        model(torch.rand(2, 3, 4, 4))
