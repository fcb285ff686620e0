import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.backbones.branches import Branches
from moeapps.vision.backbones.cifar_resnet import cifar_resnet
from moeapps.vision.backbones.table import make_parts


def _branches(num_experts=2, **options):
    parts = cifar_resnet(8, num_experts=num_experts, widths=[4, 6, 8], **options)
    return Branches(parts, [nn.Linear(8, 5) for _ in range(num_experts)])


def test_all_branches_equal_the_branches_one_by_one():
    model, images = _branches(3).eval(), torch.randn(4, 3, 16, 16)
    logits, features = model(images)
    hidden = model.share(images)
    for k in range(3):
        z, f = model.branch(k, hidden)
        assert torch.equal(z, logits[:, k])
        assert torch.equal(f, features[:, k])


def test_one_expert():
    logits, features = _branches(1)(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 1, 5)
    assert features.shape == (2, 1, 8)


def test_images_do_not_depend_on_each_other_in_eval_mode():
    model, images = _branches().eval(), torch.randn(5, 3, 16, 16)
    together, _ = model(images)
    alone = torch.cat([model(image[None])[0] for image in images])
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("training", [False, True])
def test_batch_of_one(training):
    model = _branches().train(training)
    logits, _ = model(torch.randn(1, 3, 32, 32))
    logits.sum().backward()
    assert logits.isfinite().all()


def test_one_tiny_image_in_training_is_refused_with_advice():
    model = _branches()
    with pytest.raises(ArgumentError, match="drop_last"):
        model(torch.randn(1, 3, 4, 4))
    assert model.eval()(torch.randn(1, 3, 4, 4))[0].isfinite().all()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(3, 8, 8), r"unsqueeze\(0\)"),
        (torch.zeros(2, 8, 8, 3), "permute"),
        (torch.zeros(2, 1, 8, 8), "in_channels=1"),
        (torch.zeros(2, 4, 8, 8), "channels first"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "/ 255"),
    ],
)
def test_images_that_do_not_fit_say_what_to_do(images, says):
    with pytest.raises(ArgumentError, match=says):
        _branches()(images)


def test_one_head_per_body():
    with pytest.raises(ArgumentError, match="one of each per expert"):
        Branches(cifar_resnet(8, num_experts=2), [nn.Linear(64, 3)])


def test_unknown_backbone_offers_the_closest():
    with pytest.raises(UnknownNameError, match="resnet32"):
        make_parts("resnt32", num_experts=1, reduce_width=False, in_channels=3)
