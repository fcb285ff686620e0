import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moeapps.errors import ArgumentError
from moeapps.vision.backbones.branches import Branches
from moeapps.vision.backbones.cifar_resnet import BasicBlock, cifar_resnet
from moeapps.vision.longtail.base import LongTailModel


def _mmacs(model, size=32):
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, model.backbone.in_channels, size, size))
    return counter.get_total_flops() / 2e6


def _weights(module):
    return sum(p.numel() for p in module.parameters())


def test_shortcut_without_parameters_subsamples_and_pads_both_sides():
    block = BasicBlock(2, 6, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.arange(32.0).view(1, 2, 4, 4)
    y = block(x)
    assert not y[:, [0, 1, 4, 5]].any()
    torch.testing.assert_close(y[:, 2:4], x[:, :, ::2, ::2])


def test_odd_number_of_new_channels_is_padded_too():
    assert BasicBlock(2, 5, stride=2)(torch.randn(2, 2, 4, 4)).shape == (2, 5, 2, 2)


def test_cost_of_one_and_three_branches():
    """Published as 0.07 G and 0.11 G multiply-adds; counted: 0.069 and 0.100."""
    assert _mmacs(LongTailModel(100, num_experts=1)) == pytest.approx(68.87, abs=0.01)
    reduced = LongTailModel(100, num_experts=3, reduce_width=True)
    assert _mmacs(reduced) == pytest.approx(100.36, abs=0.01)


@pytest.mark.parametrize(
    ("num_experts", "widths", "weights"),
    [(1, [16, 32, 64], 80_752), (3, [16, 24, 48], 139_344), (1, [16, 42, 84], 130_932)],
)
def test_weights_of_the_small_network(num_experts, widths, weights):
    model = LongTailModel(
        100,
        backbone="resnet8",
        in_channels=1,
        num_experts=num_experts,
        backbone_args={"widths": widths},
    )
    assert _weights(model) == weights


def test_depth_counts_the_layers():
    for depth in (8, 20, 32):
        parts = cifar_resnet(depth)
        model = Branches(parts, [torch.nn.Linear(64, 10)])
        convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in model.modules())
        assert convolutions + 1 == depth


def test_sharing_only_the_stem_leaves_three_stages_to_each_expert():
    shared = cifar_resnet(32, num_experts=3, shared_stages=0)
    assert _weights(shared.trunk) == 3 * 16 * 9 + 2 * 16
    single = cifar_resnet(32)
    assert _weights(shared.bodies[0]) + _weights(shared.trunk) == _weights(single.trunk) + _weights(
        single.bodies[0]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"depth": 33}, "6 n [+] 2"),
        ({"shared_stages": 3}, "0, 1 or 2"),
        ({"widths": [16, 8, 8]}, "do not shrink"),
        ({"widths": [16, 32]}, "3 stages"),
    ],
)
def test_impossible_networks_are_refused(arguments, says):
    with pytest.raises(ArgumentError, match=says):
        cifar_resnet(**arguments)
