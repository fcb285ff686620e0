import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moeapps import gating
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.robust.advmoe import AdvMoE
from moeapps.vision.robust.dense_cnn import DenseCNN
from moeapps.vision.robust.moe_conv import MoEConv2d

SMALL = {
    "backbone": "small_cnn",
    "in_channels": 1,
    "router_depth": 8,
    "router_widths": [4, 6, 8],
}


def small(**more):
    torch.manual_seed(0)
    return AdvMoE(10, **{**SMALL, **more}).eval()


def macs(model):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.rand(1, 3, 32, 32))
    return counter.get_total_flops() / 2e9


def parameters(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


def test_resnet18_has_the_published_cost():
    dense, half, mixture = DenseCNN(10), DenseCNN(10, ratio=0.5), AdvMoE(10)
    assert macs(dense) == pytest.approx(0.555, abs=5e-4)
    assert parameters(dense) == pytest.approx(11.17, abs=5e-3)
    assert macs(half) == pytest.approx(0.139, abs=5e-4)
    assert parameters(half) == pytest.approx(2.80, abs=5e-3)
    assert macs(mixture) == pytest.approx(0.192, abs=5e-4)
    assert parameters(mixture) == pytest.approx(5.83, abs=5e-3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixture.router(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() / 2e9 == pytest.approx(0.041, abs=5e-4)


@pytest.mark.parametrize("routing", ["global", "per_layer"])
def test_forced_experts_differ_and_the_hard_route_is_one_of_them(routing):
    model = small(routing=routing)
    images = torch.rand(6, 1, 9, 7)  # any size
    logits, scores = model(images, return_scores=True)
    each = torch.stack([model(images, route=e) for e in range(2)], 1)
    assert not torch.allclose(each[:, 0], each[:, 1])
    assert scores.shape == (6, 1 if routing == "global" else 3, 2)
    torch.testing.assert_close(model.scores(images), scores)
    if routing == "global":
        chosen = each[torch.arange(6), scores[:, 0].argmax(-1)]
        torch.testing.assert_close(chosen, logits)


def test_an_image_does_not_depend_on_its_batch():
    model, images = small(), torch.rand(5, 1, 8, 8)
    single = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(single, model(images), atol=1e-5, rtol=1e-5)


def test_one_expert_is_the_dense_network():
    torch.manual_seed(0)
    model = AdvMoE(10, **{**SMALL, "num_experts": 1, "ratio": 1.0}).eval()
    dense = DenseCNN(10, backbone="small_cnn", in_channels=1).eval()
    state = model.network.state_dict()
    dense.network.load_state_dict(
        {name.replace("experts.w", "weight"): (v[0] if "experts.w" in name else v)
         for name, v in state.items()}
    )  # fmt: skip
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model(images), dense(images))


def test_router_and_network_share_no_parameter_and_miss_none():
    for routing in ("global", "per_layer"):
        model = small(routing=routing)
        routers = {id(p) for p in model.router_parameters()}
        others = {id(p) for p in model.network_parameters()}
        assert routers
        assert not routers & others
        assert routers | others == {id(p) for p in model.parameters()}


def test_the_classification_loss_reaches_the_router_straight_through():
    model, images = small(), torch.rand(4, 1, 8, 8)
    model(images).square().sum().backward()
    assert all(p.grad is not None for p in model.router.parameters())
    model.zero_grad()
    model(images, route="detached").square().sum().backward()
    assert all(p.grad is None for p in model.router.parameters())


def test_mixture_is_the_log_of_weighted_probabilities():
    model, images = small(), torch.rand(4, 1, 8, 8)
    p = torch.stack([model(images, route=e).softmax(-1) for e in range(2)], 1)
    w = model.scores(images)[:, 0].softmax(-1)
    torch.testing.assert_close(
        model(images, route="mixture").exp(), (w.unsqueeze(-1) * p).sum(1), atol=1e-5, rtol=1e-4
    )


def test_fallback_takes_all_pathways_only_where_the_router_is_unsure():
    model, images = small(), torch.rand(8, 1, 8, 8)
    scores = model.scores(images)[:, 0]
    lead = (scores[:, 0] - scores[:, 1]).abs()
    plain = model(images)
    model.fallback = float(lead.detach().median()) + 1e-6
    unsure = model.unsure(scores)
    assert 0 < unsure.sum() < 8
    assert torch.equal(unsure, lead < model.fallback)
    logits = model(images)
    torch.testing.assert_close(logits[~unsure], plain[~unsure])
    p = torch.stack([model(images, route=e).softmax(-1) for e in range(2)], 1).mean(1)
    torch.testing.assert_close(logits[unsure].exp(), p[unsure], atol=1e-5, rtol=1e-4)


def test_routings_are_recorded():
    for routing, count in (("global", 1), ("per_layer", 3)):
        model = small(routing=routing)
        with gating.record(model) as recording:
            model(torch.rand(4, 1, 8, 8))
        assert sum(map(len, recording.routings.values())) == count


def test_bad_arguments_say_what_to_do():
    with pytest.raises(UnknownNameError, match="resnet18"):
        AdvMoE(10, backbone="resnet81")
    with pytest.raises(ArgumentError, match="num_experts=0"):
        AdvMoE(10, num_experts=0)
    with pytest.raises(ArgumentError, match="ratio"):
        DenseCNN(10, ratio=0.01)
    with pytest.raises(ArgumentError, match="global"):
        AdvMoE(10, routing="per_layer", fallback=0.1)


@pytest.mark.parametrize("make", [AdvMoE, DenseCNN])
def test_images_of_another_kind_are_refused(make):
    model = small() if make is AdvMoE else DenseCNN(10, backbone="small_cnn", in_channels=1).eval()
    with pytest.raises(ArgumentError, match=r"\[2, 3, 8, 8\], expected \[B, 1, H, W\]"):
        model(torch.rand(2, 3, 8, 8))
    with pytest.raises(ArgumentError, match=r"\[1, 8, 8\], expected \[B, 1, H, W\]"):
        model(torch.rand(1, 8, 8))
    with pytest.raises(ArgumentError, match="uint8, expected float pixels from 0 to 1"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert model(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_a_pathway_of_nan_leaves_the_others():
    model = small(fallback=1e9)
    images = torch.rand(3, 1, 8, 8)
    first = model(images, route=0).log_softmax(-1)
    for module in model.network.modules():
        if isinstance(module, MoEConv2d):
            module.experts.w.data[1] = torch.nan
    torch.testing.assert_close(model(images, route="mixture"), first)
    torch.testing.assert_close(model(images), first)  # all are unsure, so all fall back
    expert = torch.tensor([0, 1, 0])
    assert model(images, route=expert).isnan().any(1).tolist() == [False, True, False]
