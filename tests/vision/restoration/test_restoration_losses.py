import pytest
import torch

from moeapps.errors import ArgumentError, CheckpointError, DataNotFoundError
from moeapps.vision.restoration.losses import PerceptualLoss, RestorationLoss

vgg_module = pytest.importorskip("torchvision").models.vgg


def test_smooth_l1_by_hand():
    restored = torch.tensor([0.5, 2.0]).view(1, 1, 1, 2)
    target = torch.zeros(1, 1, 1, 2)
    assert RestorationLoss()(restored, target).item() == pytest.approx((0.125 + 1.5) / 2)
    narrow = RestorationLoss(beta=0.5)(restored, target)
    assert narrow.item() == pytest.approx((0.25 + 1.75) / 2)


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    features = vgg_module.make_layers(vgg_module.cfgs["D"][:9])
    return torch.nn.ModuleDict({"features": features}).eval()


@pytest.mark.parametrize("normalize", [True, False])
def test_perceptual_term_is_the_mean_over_three_layers(vgg, normalize):
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    loss = PerceptualLoss(vgg.state_dict(), normalize=normalize)
    x, y = a, b
    if normalize:
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        x, y = (a - mean) / std, (b - mean) / std
    with torch.no_grad():
        # relu1_2, relu2_2 and relu3_3 end the 4th, 9th and 16th module
        terms = [
            (vgg["features"][:end](x) - vgg["features"][:end](y)).square().mean()
            for end in (4, 9, 16)
        ]
    torch.testing.assert_close(loss(a, b), sum(terms) / 3)


def test_total_weighs_the_perceptual_term(vgg):
    a, b = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    total = RestorationLoss(0.04, weights=vgg.state_dict())(a, b)
    parts = RestorationLoss()(a, b) + 0.04 * PerceptualLoss(vgg.state_dict())(a, b)
    torch.testing.assert_close(total, parts)


def test_the_network_is_frozen_and_passes_gradients_to_the_image(vgg):
    loss = RestorationLoss(0.04, weights=vgg["features"].state_dict()).train()
    assert not any(module.training for module in loss.perceptual.modules())
    assert not any(p.requires_grad for p in loss.parameters())
    restored = torch.rand(1, 3, 16, 16, requires_grad=True)
    loss.perceptual(restored, torch.rand(1, 3, 16, 16)).backward()
    assert restored.grad.any()


def test_weights_from_a_file(vgg, tmp_path):
    torch.save(vgg.state_dict(), tmp_path / "vgg16.pth")
    read = PerceptualLoss(tmp_path / "vgg16.pth")
    torch.testing.assert_close(read.features[0].weight, vgg["features"][0].weight)


def test_missing_or_wrong_weights_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="nothing is downloaded"):
        RestorationLoss(0.04)
    with pytest.raises(DataNotFoundError, match="no file"):
        PerceptualLoss(tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="broken"):
        PerceptualLoss(tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match="vgg16"):
        PerceptualLoss({"0.weight": torch.zeros(1)})


def test_shapes_that_would_broadcast_are_refused():
    for loss in (RestorationLoss(), PerceptualLoss(random_ok=True)):
        with pytest.raises(ArgumentError, match="equal shapes"):
            loss(torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8))


def test_numbers_that_cannot_be():
    with pytest.raises(ArgumentError):
        RestorationLoss(-1.0)
    with pytest.raises(ArgumentError):
        RestorationLoss(beta=0.0)
