"""Sizes on record: parameters of the published networks, and memory of a layer."""

import pytest
import torch

from moeapps.vision.restoration.modulated_mixture import ModulatedMixture
from moeapps.vision.restoration.moe_vit import MoEViT
from moeapps.vision.restoration.mofme import MoFME
from moeapps.vision.restoration.restoration_vit import RestorationViT

# The released code also holds a table of 30 x 30 positions, and two vectors per modulation expert.
POSITIONS, VECTORS = 900 * 384, 2 * 2 * 384


def millions(build, *arguments, **options):
    with torch.device("meta"):
        network = build(*arguments, **options)
    return sum(p.numel() for p in network.parameters()) / 1e6


def test_the_plain_transformer():
    assert millions(RestorationViT) == 8.363779
    assert round(millions(RestorationViT) + POSITIONS / 1e6, 2) == 8.71


@pytest.mark.parametrize(
    ("experts", "parallel", "modulated"),
    [(4, 15.8, 11.7), (8, 25.3, 14.1), (16, 44.2, 18.8), (128, 309.1, 85.3)],
)
def test_mixtures_have_the_recorded_parameters(experts, parallel, modulated):
    assert round(millions(MoEViT, experts) + POSITIONS / 1e6, 1) == parallel
    released = millions(MoFME, experts) + (POSITIONS + VECTORS * experts) / 1e6
    assert round(released, 1) == modulated


def test_72_per_cent_fewer_parameters_are_those_of_128_experts():
    parallel = millions(MoEViT, 128) + POSITIONS / 1e6
    modulated = millions(MoFME, 128) + (POSITIONS + VECTORS * 128) / 1e6
    assert round(100 * (1 - modulated / parallel), 1) == 72.4


def test_static_experts_add_three_vectors_each_per_block():
    few, many = (
        sum(p.numel() for p in MoFME(n, kind="static", tail_channels=(8, 8)).parameters())
        for n in (1, 128)
    )
    assert many - few == 2 * 127 * (3 * 384 + 1)


def test_a_layer_routed_per_image_keeps_at_most_35_mib_for_backward():
    layer = ModulatedMixture(384, 64, routing="image", star=False).eval()
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(torch.randn(2, 900, 384, requires_grad=True))
    assert y.requires_grad
    assert 20 < sum(kept.values()) / 2**20 <= 35
