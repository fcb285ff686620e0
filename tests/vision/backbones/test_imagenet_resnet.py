import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moeapps.errors import ArgumentError, CheckpointError, DataNotFoundError
from moeapps.vision.backbones.imagenet_resnet import imagenet_resnet
from moeapps.vision.longtail.base import LongTailModel

ORACLES = {"18": "resnet18", "50": "resnet50", "50x4d": "resnext50_32x4d"}


@pytest.mark.parametrize("size", ORACLES)
def test_equals_torchvision_with_its_weights(size, tmp_path):
    models = pytest.importorskip("torchvision.models", reason='needs pip install "moeapps[vision]"')
    oracle = getattr(models, ORACLES[size])(weights=None)
    for module in oracle.modules():
        if isinstance(module, nn.BatchNorm2d):  # not the identity
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    path = tmp_path / "weights.pth"
    torch.save(oracle.state_dict(), path)
    oracle.fc = nn.Identity()
    parts = imagenet_resnet(size, num_experts=2, weights=path)
    images = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        expected = oracle.eval()(images)
        hidden = parts.trunk.eval()(images)
        for body in parts.bodies:
            torch.testing.assert_close(body.eval()(hidden), expected)


@pytest.mark.parametrize(
    ("backbone", "num_experts", "reduce_width", "shared_stages", "counted", "published"),
    [
        ("resnext50", 1, False, 2, 4.23, 4.26),
        ("resnext50", 3, True, 2, 6.05, 6.08),
        ("resnet50", 1, False, 2, 4.10, 4.14),
        ("resnet50", 3, True, 2, 5.80, 5.80),
        ("resnet152", 1, False, 2, 11.51, 11.56),
        ("resnet152", 3, False, 3, 13.13, 13.18),
    ],
)
def test_cost_is_the_published_one(
    backbone, num_experts, reduce_width, shared_stages, counted, published
):
    """Convolutions and classifiers; the published counts include a little more."""
    classes = {"resnext50": 1000, "resnet50": 8142, "resnet152": 365}[backbone]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = LongTailModel(
            classes,
            backbone=backbone,
            num_experts=num_experts,
            reduce_width=reduce_width,
            classifier="linear",
            backbone_args={"shared_stages": shared_stages},
        )
        model.backbone.eval()(torch.empty(1, 3, 224, 224))
    gmacs = counter.get_total_flops() / 2e9
    assert gmacs == pytest.approx(counted, abs=0.01)
    assert gmacs == pytest.approx(published, rel=0.01)


def test_reduced_branches_and_sharing_of_the_third_stage():
    reduced = imagenet_resnet("10", num_experts=2, reduce_width=True)
    assert reduced.features == 384
    assert len(imagenet_resnet("10", shared_stages=3).bodies[0]) == 2  # a stage and the mean
    with pytest.raises(ArgumentError, match="0 to 3"):
        imagenet_resnet("10", shared_stages=4)


def test_small_images_and_batches_of_one():
    model = LongTailModel(5, backbone="resnet10", num_experts=2)
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert model.eval()(torch.randn(1, 3, 20, 20)).isfinite().all()


def test_weights_come_from_a_local_file_only(tmp_path):
    with pytest.raises(DataNotFoundError, match="not downloaded"):
        imagenet_resnet("10", weights=tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        imagenet_resnet("10", weights=tmp_path / "text.pth")


def test_weights_of_another_width_are_refused(tmp_path):
    full = imagenet_resnet("10")
    path = tmp_path / "weights.pth"
    torch.save({**full.trunk.state_dict(), **full.bodies[0].state_dict()}, path)
    with pytest.raises(CheckpointError, match="reduce_width=False"):
        imagenet_resnet("10", reduce_width=True, weights=path)
    again = imagenet_resnet("10", num_experts=2, weights=path)
    for body in again.bodies:
        assert torch.equal(body.layer4[0].conv1.weight, full.bodies[0].layer4[0].conv1.weight)
