import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moeapps.errors import ArgumentError, DataNotFoundError, UnknownNameError
from moeapps.vision.counting.hmode import FlatDensityCounter, HMoDE, SingleDensityCounter
from moeapps.vision.counting.pyramids import PlainPyramid, VGGPyramid, make_pyramid

SMALL = {"backbone": "plain", "strides": (2, 4, 8), "decoder_width": 6, "expert_width": 8}
COUNTERS = [HMoDE, FlatDensityCounter, SingleDensityCounter]


def make(counter, **more):
    torch.manual_seed(0)
    gates = {} if counter is SingleDensityCounter else {"gate_widths": [6]}
    gates |= {"slim": True} if counter is HMoDE else {}
    return counter(**SMALL, **gates, **more).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_released_network_has_the_published_size_and_cost():
    model = HMoDE().eval()
    assert count(model) / 1e6 == pytest.approx(82.6, abs=0.05)
    second = count(model.mixture.second)
    assert second / 1e6 == pytest.approx(48.4, abs=0.05)
    assert second / count(model) == pytest.approx(0.58, abs=0.01)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.rand(1, 3, 128, 128))
    assert flops.get_total_flops() / 2e9 == pytest.approx(11.9, abs=0.05)


def test_the_slim_second_gate_is_a_small_part():
    with torch.device("meta"):
        slim = HMoDE(slim=True)
    assert count(slim.mixture.second) == 512 * 256 * 9 + 256 * 256 * 9 + 2 * 256 + 256 * 3 + 3
    assert count(slim) / 1e6 == pytest.approx(36.0, abs=0.05)


def test_vgg_maps_have_their_strides_before_the_poolings():
    pyramid = VGGPyramid().eval()
    shapes = [tuple(x.shape) for x in pyramid(torch.rand(1, 3, 32, 48))]
    assert shapes == [(1, 256, 8, 12), (1, 512, 4, 6), (1, 512, 2, 3)]
    assert sum(isinstance(m, torch.nn.MaxPool2d) for m in pyramid.modules()) == 4
    assert count(pyramid) == 14_723_136  # 13 convolutions and norms of VGG16-BN


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("size", [(1, 1), (16, 24), (37, 50), (8, 101)])
def test_any_size_gives_a_density_of_that_size_whose_sum_is_that_of_the_cells(counter, size):
    model = make(counter)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    density, aux = model(images, return_aux=True)
    assert density.shape == (2, 1, *size)
    rows, columns = (-(-n // 2) for n in size)
    assert aux["output"].shape == (2, 1, rows, columns)
    assert aux["experts"].shape[1:] == (len(model.experts), rows, columns)
    assert (density >= 0).all()
    if size[0] % 2 == 0 and size[1] % 2 == 0:
        sums = 4 * aux["output"].sum((1, 2, 3)) / model.label_scale
        torch.testing.assert_close(density.sum((1, 2, 3)), sums)


@pytest.mark.parametrize("counter", COUNTERS)
def test_an_image_alone_gives_what_it_gives_in_a_batch(counter):
    model = make(counter)
    images = torch.rand(3, 3, 20, 27, generator=torch.Generator().manual_seed(2))
    together = model(images)
    for i in range(3):
        torch.testing.assert_close(model(images[i : i + 1])[0], together[i])


def test_coarse_experts_repeat_densities_without_rescaling():
    model = make(HMoDE)
    _, aux = model(torch.rand(1, 3, 16, 24), return_aux=True)
    coarse = aux["experts"][0, 2]
    assert torch.equal(coarse, coarse[::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1))
    assert coarse.unique().numel() > 1


@pytest.mark.parametrize("act", ["relu", "softplus"])
def test_experts_start_near_the_same_positive_density(act):
    _, aux = make(HMoDE, out_act=act)(torch.rand(1, 3, 32, 32), return_aux=True)
    assert (aux["experts"] > 0).float().mean() > 0.99
    assert aux["experts"].mean().item() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_any_pyramid_of_timm_serves(name):
    options = {"img_size": 64} if name.startswith("swin") else {}
    model = HMoDE(backbone=name, backbone_args=options, decoder_width=4, slim=True).eval()
    assert model.stride == 4
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_four_experts_take_four_strides():
    model = HMoDE(
        backbone="resnet18", strides=(4, 8, 16, 32), decoder_width=4, slim=True, gate_widths=[4]
    ).eval()
    _, aux = model(torch.rand(1, 3, 64, 64), return_aux=True)
    assert aux["experts"].shape == (1, 4, 16, 16)
    assert aux["groups"].shape == (1, 6, 16, 16)


def test_weights_come_from_a_file(tmp_path):
    torch.manual_seed(1)
    saved = PlainPyramid()
    torch.save(saved.state_dict(), tmp_path / "encoder.pth")
    model = make(SingleDensityCounter, weights=str(tmp_path / "encoder.pth"))
    assert torch.equal(model.pyramid.stages[1][1].weight, saved.stages[1][1].weight)
    import timm

    timm_model = timm.create_model("resnet18")
    torch.save(timm_model.state_dict(), tmp_path / "resnet.pth")
    loaded = make_pyramid("resnet18", (4, 8), tmp_path / "resnet.pth")
    assert torch.equal(loaded.model.conv1.weight, timm_model.conv1.weight)
    with pytest.raises(DataNotFoundError, match="No weights at"):
        make_pyramid("resnet18", (4, 8), tmp_path / "none.pth")


def test_vgg_weights_are_those_of_torchvision(tmp_path):
    from torchvision.models.vgg import cfgs, make_layers

    theirs = make_layers(cfgs["D"], batch_norm=True).eval()
    state = {f"features.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(4)}, tmp_path / "vgg.pth")
    pyramid = VGGPyramid(weights=tmp_path / "vgg.pth").eval()
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(pyramid(x)[-1], theirs[:43](x))


def test_wrong_arguments_are_named():
    with pytest.raises(ArgumentError, match="neither 'vgg16_bn' nor 'plain'"):
        HMoDE(backbone="resnet19")
    with pytest.raises(ArgumentError, match=r"no maps at strides \[4, 16\]"):
        HMoDE(backbone="resnet18", strides=(4, 16))
    with pytest.raises(UnknownNameError, match="softplus"):
        HMoDE(**SMALL, out_act="softpluss")
    with pytest.raises(ArgumentError, match="would download"):
        make_pyramid("resnet18", (4, 8), pretrained=True)
    with pytest.raises(ArgumentError, match=r"expected \[B, 3, H, W\]"):
        make(HMoDE)(torch.rand(2, 1, 16, 16))
