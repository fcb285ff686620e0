import copy
import pickle

import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.vision.backbones.timm_branches import ExpertBranches
from moeapps.vision.longtail.base import LongTailModel

timm = pytest.importorskip("timm", reason='needs pip install "moeapps[vision]"')

TINY_VIT = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 24, "num_heads": 2}
TINY_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 12,
    "depths": (1, 1),
    "num_heads": (2, 2),
}
FAMILIES = {
    "resnet18": (64, "layer2", {}),
    "resnext50_32x4d": (64, "layer2", {}),
    "convnext_atto": (64, "stages.1", {}),
    "efficientnet_b0": (64, "blocks.3", {}),
    "mobilenetv3_small_050": (64, "blocks.3", {}),
    "mobilenetv2_050": (64, "blocks.3", {}),
    "regnetx_002": (64, "s2", {}),
    "densenet121": (64, "features.transition2", {}),
    "vit_tiny_patch16_224": (32, "blocks.1", TINY_VIT),
    "deit_tiny_patch16_224": (32, "blocks.1", TINY_VIT),
    "swin_tiny_patch4_window7_224": (32, "layers.0", TINY_SWIN),
}


def _model(name):
    size, split_at, options = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, num_classes=7, **options)
        return model.eval(), torch.randn(2, 3, size, size), split_at


def _weights(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_experts_give_the_model_and_share_its_first_part(name):
    model, images, split_at = _model(name)
    with torch.no_grad():
        expected = model(images)
        for where in (split_at, 0.5):
            branches = ExpertBranches(model, 2, split_at=where).eval()
            logits, features = branches(images)
            torch.testing.assert_close(logits.mean(1), expected)
            assert features.shape == (2, 2, branches.features)
            tail = branches.bodies[0], branches.heads[0]
            assert _weights(branches.trunk) > 0
            assert _weights(branches.trunk, *tail) == _weights(model)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_branches_train_as_the_model_would(name):
    model, images, _ = _model(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    branches = ExpertBranches(model, 1)
    model.train()
    branches.train()
    logits, _ = branches(images)
    torch.testing.assert_close(logits[:, 0], model(images))
    logits.sum().backward()
    assert all(p.grad is not None for p in branches.parameters())
    counts = [b for n, b in branches.named_buffers() if n.endswith("num_batches_tracked")]
    assert all(int(count) == 1 for count in counts)


def test_experts_share_no_parameters_with_each_other_or_the_model():
    model, _, _ = _model("resnet18")
    branches = ExpertBranches(model, 2)
    pointers = [p.data_ptr() for p in (*branches.parameters(), *model.parameters())]
    assert len(set(pointers)) == len(pointers)


def test_branches_copy_and_pickle():
    model, images, _ = _model("mobilenetv3_small_050")
    branches = ExpertBranches(model, 2).eval()
    expected, _ = branches(images)
    for copied in (copy.deepcopy(branches), pickle.loads(pickle.dumps(branches))):
        assert torch.equal(copied(images)[0], expected)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [("vit_tiny_patch16_224", 32, TINY_VIT), ("resnet18", 64, {})],
)
def test_a_timm_network_is_a_backbone_by_name(name, size, options):
    model = LongTailModel(
        6,
        backbone=f"timm/{name}",
        num_experts=3,
        in_channels=1,
        backbone_args={"split_at": 0.4, **options},
    )
    images = torch.randn(2, 1, size, size)
    output, aux = model(images, return_aux=True)
    output.sum().backward()
    assert aux["logits"].shape == (2, 3, 6)
    assert all(p.grad is not None for p in model.parameters())


def test_fixed_image_sizes_are_named():
    model = LongTailModel(
        3, backbone="timm/vit_tiny_patch16_224", backbone_args=TINY_VIT, num_experts=1
    )
    with pytest.raises(ArgumentError, match="takes 32x32"):
        model(torch.randn(2, 3, 28, 28))


def test_drop_path_still_drops_in_training_only():
    model = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.9, **TINY_VIT)
    branches, images = ExpertBranches(model, 1), torch.randn(4, 3, 32, 32)
    assert not torch.equal(branches(images)[0], branches(images)[0])
    branches.eval()
    assert torch.equal(branches(images)[0], branches(images)[0])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "test_vit", "vgg11"])
@pytest.mark.parametrize("traced_in_training", [False, True])
def test_dropout_drops_in_training_only(name, traced_in_training):
    options = {"test_vit": {"img_size": 64}, "vgg11": {"mlp_ratio": 1 / 64}}.get(name, {})
    model = timm.create_model(name, drop_rate=0.5, num_classes=7, **options)
    branches, images = ExpertBranches(model.train(traced_in_training), 2), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(branches.eval()(images)[0].mean(1), model.eval()(images))
    trained, _ = branches.train()(images)
    assert not torch.allclose(trained[:, 0], trained[:, 1])  # equal, but for what they drop


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tresnet_m", {}),  # folds 4 x 4 pixels into channels before its first convolution
        (
            "samvit_base_patch16",  # has positions of four axes
            {
                "img_size": 64,
                "depth": 2,
                "embed_dim": 16,
                "num_heads": 2,
                "neck_chans": 16,
                "global_attn_indexes": (),
            },
        ),
    ],
)
def test_channels_of_the_images_are_found(name, options):
    branches = ExpertBranches(name, 1, in_chans=2, num_classes=3, **options).eval()
    assert branches.in_channels == 2
    assert branches(torch.randn(1, 2, 64, 64))[0].shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("deit_tiny_distilled_patch16_224", TINY_VIT, "VisionTransformerDistilled.*single head"),
        ("resnet18", {"num_classes": 0}, "ResNet cannot be split.*classifier"),
        (
            "vit_tiny_patch16_224",
            {**TINY_VIT, "attn_drop_rate": 0.1},
            "VisionTransformer.*attn_drop_rate",
        ),
    ],
)
def test_networks_that_cannot_be_split_are_named(name, options, says):
    with pytest.raises(ArgumentError, match=says):
        ExpertBranches(name, 2, **options)


def test_networks_that_cannot_be_traced_are_named():
    class Restless(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ArgumentError, match=r"Restless cannot be split.*traced"):
        ExpertBranches(Restless(), 2)


@pytest.mark.parametrize(
    ("split_at", "says"),
    [
        ("layer9", "no such module.*layer2"),
        ("layer2.0.conv1", "more than one tensor"),
        (1.5, "0 < split_at < 1"),
    ],
)
def test_impossible_cuts_name_the_possible_ones(split_at, says):
    model, _, _ = _model("resnet18")
    with pytest.raises(ArgumentError, match=says):
        ExpertBranches(model, 2, split_at=split_at)


def test_nothing_is_downloaded():
    with pytest.raises(ArgumentError, match="weights=PATH"):
        ExpertBranches("resnet18", 2, pretrained=True)


def test_local_weights_are_loaded(tmp_path):
    model, images, _ = _model("resnet18")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    branches = ExpertBranches("resnet18", 2, weights=tmp_path / "weights.pth", num_classes=7)
    torch.testing.assert_close(branches.eval()(images)[0].mean(1), model(images))
