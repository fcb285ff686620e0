import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import UnknownNameError
from moeapps.vision.restoration.heads import DownstreamModel
from moeapps.vision.restoration.mofme import MoFME


def restorer():
    torch.manual_seed(0)
    return MoFME(2, embed_dim=16, depth=1, patch_size=4, num_heads=2, head_dim=8, head_channels=4)


@pytest.mark.parametrize(
    ("task", "shape"), [("segmentation", (2, 5, 10, 19)), ("classification", (2, 5))]
)
def test_logits_have_the_shape_of_the_task(task, shape):
    model = DownstreamModel(restorer(), 5, task=task)
    assert model(torch.rand(2, 3, 10, 19)).shape == shape


@pytest.mark.parametrize("freeze", [True, False])
def test_freezing_leaves_the_network_as_it_was(freeze):
    model = DownstreamModel(restorer(), 3, task="classification", freeze=freeze).train()
    assert model.restorer.training is not freeze
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    assert model.head.linear.weight.grad is not None
    reached = [p.grad is not None for p in model.restorer.embed.parameters()]
    assert all(reached) is not freeze


def test_a_head_learns_which_half_is_bright():
    model = DownstreamModel(restorer(), 2, freeze=False)
    images = torch.full((2, 3, 16, 16), 0.1)
    images[0, :, :, 8:], images[1, :, 8:] = 0.9, 0.9
    labels = (images[:, 0] > 0.5).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model.eval()(images).argmax(1) == labels).double().mean() > 0.9


def test_unknown_tasks_are_named():
    with pytest.raises(UnknownNameError, match="segmentation"):
        DownstreamModel(restorer(), 2, task="segmentaton")
