import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.vision.backbones.branches import Branches
from moeapps.vision.backbones.fused import GroupedBranches, folded
from moeapps.vision.longtail.aggregate import PriorCorrected
from moeapps.vision.longtail.backdoor import BackdoorAdjustment
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.early_exit import MaxProb, Sequential

BACKBONES = {
    "resnet8": {"widths": [4, 7, 12]},
    "resnet10": {},
    "resnext50": {"shared_stages": 3},
}


def _model(backbone="resnet8", num_experts=3):
    model = LongTailModel(
        5,
        [9, 4, 2, 1, 1],
        backbone=backbone,
        num_experts=num_experts,
        reduce_width=True,
        backbone_args=BACKBONES[backbone],
    )
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 32, 32))
    return model.eval(), torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("grouped", [False, True, None])
def test_fused_models_agree(backbone, grouped):
    model, images = _model(backbone)
    model.aggregate = PriorCorrected(model.aggregate, model.counts)
    fused = model.fuse_for_inference(grouped=grouped)
    assert isinstance(fused.backbone, Branches if grouped is False else GroupedBranches)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    for batch in (images, images[:1]):
        output, aux = model(batch, return_aux=True)
        torch.testing.assert_close(fused(batch), output, atol=1e-5, rtol=1e-5)
        for name, value in fused(batch, return_aux=True)[1].items():
            torch.testing.assert_close(value, aux[name], atol=1e-5, rtol=1e-5)


def test_the_model_itself_is_left_alone():
    model, images = _model()
    before, expected = [*model.state_dict()], model(images)
    model.fuse_for_inference()
    assert [*model.state_dict()] == before
    assert torch.equal(model(images), expected)
    assert all(p.requires_grad for p in model.parameters())


def test_an_early_exit_keeps_its_branches_apart():
    model, images = _model()
    model.aggregate = Sequential(MaxProb(0.5))
    fused = model.fuse_for_inference()
    assert isinstance(fused.backbone, Branches)
    torch.testing.assert_close(fused(images), model(images), atol=1e-5, rtol=1e-5)
    with pytest.raises(ArgumentError, match="skip nothing"):
        model.fuse_for_inference(grouped=True)


def test_an_early_exit_set_on_grouped_experts_is_refused():
    model, images = _model()
    fused = model.fuse_for_inference(grouped=True)
    fused.aggregate = Sequential(MaxProb(0.5))
    with pytest.raises(ArgumentError, match="cannot skip any"):
        fused(images)


@pytest.mark.parametrize("grouped", [False, True])
def test_double_precision_stays(grouped):
    model, images = _model()
    model, images = model.double(), images.double()
    torch.testing.assert_close(model.fuse_for_inference(grouped=grouped)(images), model(images))


@pytest.mark.parametrize("make", [folded, GroupedBranches])
def test_the_branches_keep_their_mode(make):
    branches = _model()[0].backbone.train()
    make(branches)
    assert all(module.training for module in branches.modules())


def test_networks_without_batch_norm_need_no_tracing():
    pytest.importorskip("timm", reason='needs pip install "moeapps[vision]"')
    models = [{"name": "test_vit", "img_size": 64}]
    model = BackdoorAdjustment(3, [4, 2, 1], models=models).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.fuse_for_inference()(images), model(images))


def test_networks_that_cannot_be_traced_are_named():
    class Restless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else -self.norm(x).mean((2, 3))

    model = BackdoorAdjustment(3, [4, 2, 1], models=[Restless()])
    with pytest.raises(ArgumentError, match="_Member cannot be folded"):
        model.fuse_for_inference()


def test_one_expert_is_only_folded():
    model, _ = _model(num_experts=1)
    assert isinstance(model.fuse_for_inference().backbone, Branches)


def test_other_networks_are_folded_but_not_grouped():
    pytest.importorskip("timm", reason='needs pip install "moeapps[vision]"')
    model = LongTailModel(5, backbone="timm/mobilenetv3_small_050", num_experts=2).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.fuse_for_inference()(images), model(images))
    with pytest.raises(ArgumentError, match="cannot run side by side"):
        model.fuse_for_inference(grouped=True)


def test_images_are_checked_as_before():
    model, _ = _model()
    with pytest.raises(ArgumentError, match="in_channels=1"):
        model.fuse_for_inference()(torch.zeros(2, 1, 8, 8))


def test_fused_models_export():
    model, images = _model()
    fused = model.fuse_for_inference()
    dims = ({0: torch.export.Dim("images", min=2)},)
    program = torch.export.export(fused, (images,), dynamic_shapes=dims).module()
    more = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program(more), fused(more))
